"""One figure that explains the method: the attention of one query, step by step from softmax to FLatten."""

# N tokens, E value channels per head.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from flatten_transformer.analysis.capture import CapturedGrid, Grid, capture
from flatten_transformer.analysis.metrics import numerical_rank
from flatten_transformer.analysis.plots import QueryView
from flatten_transformer.analysis.selection import check_index, select_layer
from flatten_transformer.utils.atomic_file import write_figure


def explain(
    flatten_model: nn.Module, softmax_model: nn.Module, image: Tensor, *, query: int, block: int, head: int
) -> list[QueryView]:
    """Return the four views of the method's story for one query token.

    Softmax attention is the twin's own; the other three come from the FLatten model: its queries and
    keys with power 1 (ReLU linear attention), with its own power, and with the convolution added.
    Rank restoration has one matrix a channel: the view has their mean and their median rank.

    Args:
        flatten_model: A FLatten-DeiT.
        softmax_model: Its softmax twin.
        image: Input of the models, ``[1, channels, height, width]``.
        query: Index of the query token.
        block: Index of the block.
        head: Index of the head.

    Raises:
        ValueError: If there is no such query, block or head; the message lists what exists.
    """
    softmax, flatten = (select_layer(capture(model, image), block) for model in (softmax_model, flatten_model))
    check_index("head", head, flatten.heads)
    check_index("query", query, flatten.queries)
    assert isinstance(flatten, CapturedGrid)
    channels = range(head * flatten.head_dim, (head + 1) * flatten.head_dim)
    matrices = {
        "softmax attention": softmax.decompose().matrix[0, head],
        "ReLU linear attention": flatten.refocused(1).decompose().matrix[0, head],
        "focused linear attention": flatten.decompose().matrix[0, head],
        "focused + rank restoration": flatten.equivalent(channels)[0],  # [E, N, N]
    }
    return [_view(title, matrix, query, tuple(flatten.layout.grid_size)) for title, matrix in matrices.items()]


def _view(title: str, matrix: Tensor, query: int, grid_size: Grid) -> QueryView:
    rank = int(numerical_rank(matrix).median())
    mean = matrix if matrix.ndim == 2 else matrix.mean(dim=0)
    return QueryView(title, divmod(query, grid_size[1]), grid_size, mean[query].reshape(grid_size), rank=rank)


def draw_explanation(image: Tensor, views: Sequence[QueryView], path: Path) -> None:
    """Draw the input and the views side by side, each with its rank under it, into a PNG file.

    Args:
        image: ``[height, width]``, grey values.
        views: From :func:`explain`; their query token is outlined in every panel.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    (row, column), (rows, columns) = views[0].token, views[0].grid_size
    figure = Figure(figsize=(2.35 * (len(views) + 1), 3.3), layout="constrained")
    axes = figure.subplots(1, len(views) + 1)
    axes[0].imshow(image.cpu().numpy(), cmap="gray", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    axes[0].set_title("input")
    axes[0].set_xlabel("outlined: the query token")
    limit = max(float(view.attention.abs().max()) for view in views)
    for axis, view in zip(axes[1:], views, strict=True):
        heat = axis.imshow(view.attention.cpu().numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(view.name)
        axis.set_xlabel(f"rank {view.rank} of {rows * columns}", fontweight="bold")
    for axis in axes:
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="limegreen", linewidth=2))
        axis.set_xticks([])
        axis.set_yticks([])
        axis.title.set_fontsize(10)
    figure.colorbar(heat, ax=axes, shrink=0.6, label="weight of each token")
    write_figure(path, figure, tight=True)
