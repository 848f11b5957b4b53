"""One picture that explains the method: where one query looks, step by step from softmax to FLatten."""

# N tokens, E value channels per head.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatten_transformer.analysis.matrices import (
    attention_input,
    convolution_matrix,
    focused_matrix,
    numerical_rank,
    softmax_matrix,
)


class AttentionView(NamedTuple):
    """How one design of attention looks at an image."""

    title: str
    weights: Tensor  # [N], of the chosen query over the tokens
    rank: int  # of the whole [N, N] matrix


def explain(
    flatten_model: nn.Module,
    softmax_model: nn.Module,
    image: Tensor,
    grid_size: Sequence[int],
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
        grid_size: The token grid of the image.
        query: Index of the query token.
        block: Index of the block.
        head: Index of the head.

    Raises:
        ValueError: If there is no such query, block or head; the message lists what exists.
    """
    softmax = softmax_matrix(*attention_input(softmax_model, image, block))[0]
    attention, tokens = attention_input(flatten_model, image, block)
    for name, index, count in (("head", head, softmax.shape[0]), ("query", query, softmax.shape[1])):
        if not 0 <= index < count:
            raise ValueError(f"there are {count} of them: {name} must be 0 to {count - 1}, got {index}")
    linear = focused_matrix(attention, tokens, grid_size, focusing_factor=1)[0, head]
    focused = focused_matrix(attention, tokens, grid_size)[0, head]
    restored = focused + convolution_matrix(attention, grid_size)  # [E, N, N]
    return [
        _view("softmax attention", softmax[head], query),
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
    figure.savefig(path, dpi=150, bbox_inches="tight")


def inkiest_token(image: Tensor, grid_size: Sequence[int]) -> int:
    """Return the token with the most ink (the largest mean grey value) of ``[height, width]``.

    Example:
        >>> inkiest_token(torch.eye(4)[:2].repeat(2, 1), (2, 2))
        0
    """
    rows, columns = grid_size
    means = torch.nn.functional.adaptive_avg_pool2d(image[None, None].float(), (rows, columns))
    return int(means.argmax())
