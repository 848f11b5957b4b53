"""One picture that explains the method: where one query looks, step by step from softmax to FLatten."""

# N tokens, E value channels per head.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from flatten_transformer.analysis.capture import capture
from flatten_transformer.analysis.choice import check_index, choose_look
from flatten_transformer.analysis.looks import GridLook
from flatten_transformer.analysis.measures import numerical_rank
from flatten_transformer.atomic_file import write_figure


class AttentionView(NamedTuple):
    """How one design of attention looks at an image."""

    title: str
    weights: Tensor  # [N], of the chosen query over the tokens
    rank: int  # of the whole [N, N] matrix


def explain(
    flatten_model: nn.Module,
    softmax_model: nn.Module,
    image: Tensor,
    *,
    query: int,
    block: int,
    head: int,
) -> list[AttentionView]:
    """Return the four views of the method's story for one query token.

    Softmax attention is the twin's own; the other three are read off the FLatten model: its queries and
    keys with power 1 (ReLU linear attention), with its own power, and with the convolution added.
    Rank restoration has one matrix a channel: the mean is shown, the median rank is given.

    Args:
        flatten_model: A FLatten-DeiT.
        softmax_model: Its softmax twin.
        image: ``[1, channels, height, width]``, as the models take it.
        query: Index of the query token.
        block: Index of the block.
        head: Index of the head.

    Raises:
        ValueError: If there is no such query, block or head; the message lists what exists.
    """
    softmax, look = (choose_look(capture(model, image), block) for model in (softmax_model, flatten_model))
    check_index("head", head, look.heads)
    check_index("query", query, look.queries)
    assert isinstance(look, GridLook)
    linear = look.refocused(1).decompose().matrix[0, head]
    focused = look.decompose().matrix[0, head]
    restored = look.equivalent(range(head * look.head_dim, (head + 1) * look.head_dim))[0]  # [E, N, N]
    return [
        _view("softmax attention", softmax.decompose().matrix[0, head], query),
        _view("ReLU linear attention", linear, query),
        _view("focused linear attention", focused, query),
        _view("focused + rank restoration", restored, query),
    ]


def _view(title: str, matrix: Tensor, query: int) -> AttentionView:
    rank = int(numerical_rank(matrix).median())
    mean = matrix if matrix.ndim == 2 else matrix.mean(dim=0)
    return AttentionView(title, mean[query], rank)


def draw_explanation(image: Tensor, grid_size: Sequence[int], query: int, views: Sequence[AttentionView], path: Path) -> None:
    """Draw the input and the views side by side, each with its rank under it, into a PNG file.

    Args:
        image: ``[height, width]``, grey values.
        grid_size: The token grid, two axes.
        query: Index of the query token, outlined in every panel.
        views: From :func:`explain`.
        path: Where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = grid_size
    figure = Figure(figsize=(2.35 * (len(views) + 1), 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(views) + 1)
    axes[0].imshow(image.cpu().numpy(), cmap="gray", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    axes[0].set_title("input")
    axes[0].set_xlabel("outlined: the query token")
    limit = max(float(view.weights.abs().max()) for view in views)
    for axis, view in zip(axes[1:], views, strict=True):
        weights = view.weights.reshape(rows, columns).cpu().numpy()
        heat = axis.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(view.title)
        axis.set_xlabel(f"rank {view.rank} of {rows * columns}", fontweight="bold")
    for axis in axes:
        place = (query % columns - 0.5, query // columns - 0.5)
        axis.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="limegreen", linewidth=2))
        axis.set_xticks([])
        axis.set_yticks([])
        axis.title.set_fontsize(10)
    figure.colorbar(heat, ax=axes, shrink=0.6, label="weight of each token")
    write_figure(path, figure, dpi=150, tight=True)
