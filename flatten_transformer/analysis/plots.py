"""Plots of one model: attention of a query in every layer, matrix and angles of one layer."""

# N queries, M keys.

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatten_transformer.analysis.angles import BINS, Angles
from flatten_transformer.analysis.capture import CapturedAttention, Grid
from flatten_transformer.analysis.selection import sample_channels, token_at
from flatten_transformer.utils.picture_style import DASHES, DPI, LINES, PALE, add_grid, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARK = LINES[1]  # outlines the query
_COLUMNS = 7
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def hide_ticks(axis: Axes) -> None:
    """Remove the ticks of an image panel, and draw its whole frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)


@dataclass(frozen=True)
class QueryView:
    """Attention of one query token in one layer.

    Args:
        name: The layer's name.
        token: Row and column of the query on the grid of this layer.
        grid_size: The grid of the queries.
        attention: Weights of the keys on their grid, ``[rows, columns]``.
        restored: The same with the convolution, mean over the sampled channels; None without one.
        rank: Rank of the whole matrix, for pictures that show it.
    """

    name: str
    token: tuple[int, int]
    grid_size: Grid
    attention: Tensor
    restored: Tensor | None = None
    rank: int | None = None


@dataclass(frozen=True)
class MatrixView:
    """The matrices of one head of one layer: its attention, and the mean convolution of the sampled channels.

    Args:
        name: The layer's name.
        head: Index of the head.
        attention: ``[N, M]``.
        convolution: ``[N, M]``; None without one.
    """

    name: str
    head: int
    attention: Tensor
    convolution: Tensor | None


def view_query(
    attention: CapturedAttention, query: tuple[int, int], grid_size: Grid, *, head: int, channels: int = 4
) -> QueryView | None:
    """Return the attention of a query token; None for a layer of windows, or one whose keys lie on no known grid.

    Args:
        attention: From :func:`flatten_transformer.analysis.capture`.
        query: Row and column on ``grid_size``; a layer with another grid shows the token at the same place of the image.
        grid_size: Grid of ``query``.
        head: Index of the head.
        channels: See :func:`flatten_transformer.analysis.measure`.
    """
    token = token_at(attention, query, grid_size)
    if token is None or attention.context_grid_size is None or attention.grid_size is None:
        return None
    matrix = view_matrix(attention, head=head, channels=channels)
    rows, columns = attention.context_grid_size
    prefix = attention.keys - rows * columns
    weights = matrix.attention[token, prefix:].reshape(rows, columns)
    restored = None if matrix.convolution is None else weights + matrix.convolution[token, prefix:].reshape(rows, columns)
    row, column = divmod(token - attention.num_prefix_tokens, attention.grid_size[1])
    return QueryView(attention.name, (row, column), attention.grid_size, weights, restored)


def view_matrix(attention: CapturedAttention, *, head: int, channels: int = 4) -> MatrixView:
    """Return the matrices of one head, of the first window where there are several; means over the sampled channels."""
    chosen = sample_channels(attention, head, channels)
    matrix, convolution = attention.decompose().matrix, attention.convolution(chosen)
    groups = attention.groups(chosen, matrix.shape[1])
    return MatrixView(attention.name, head, matrix[0, groups].mean(0), None if convolution is None else convolution[0].mean(0))


def singular_values(matrix: Tensor) -> Sequence[float]:
    """Return the singular values of ``[N, M]``, largest first, divided by the largest."""
    values = torch.linalg.svdvals(matrix)
    return (values / values[0].clamp_min(torch.finfo(values.dtype).tiny)).tolist()


def draw_queries(image: np.ndarray[Any, Any], views: Sequence[QueryView], title: str, *, restored: bool = False) -> bytes:
    """Draw the image and the attention of its query in each layer, in a grid of panels; returns a PNG.

    Args:
        image: Input of the model, ``[height, width]`` grey or ``[height, width, 3]``, 0 to 1.
        views: One for each layer.
        title: Title of the picture.
        restored: Include the convolution.
    """
    maps = [view.restored if restored and view.restored is not None else view.attention for view in views]
    signed = any(bool((weights < 0).any()) for weights in maps)
    columns = min(_COLUMNS, len(views) + 1)
    rows = -(-(len(views) + 1) // columns)
    with styled():
        figure = new_figure(1.75 * columns + 1.2, 2.15 * rows + 0.7)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel in panels:
            panel.axis("off")
        _show_image(panels[0], image, views[0])
        for panel, view, weights in zip(panels[1:], views, maps, strict=False):
            heat = _show_weights(panel, view, weights, signed)
        label = "weight / largest of the panel"
        figure.colorbar(heat, ax=panels, shrink=0.8, label=label, aspect=30)
        figure.suptitle(title, fontsize=12)
        return to_png(figure)


def _show_image(panel: Axes, image: np.ndarray[Any, Any], view: QueryView) -> None:
    rows, columns = view.grid_size
    panel.axis("on")
    panel.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), aspect="auto")
    panel.set_box_aspect(image.shape[0] / image.shape[1])
    panel.set_title("image")
    panel.set_xlabel(f"query {view.token[0]},{view.token[1]}", fontsize=8.5)
    hide_ticks(panel)
    _outline(panel, view.token, (1, 1))


def _show_weights(panel: Axes, view: QueryView, weights: Tensor, signed: bool) -> Any:
    """Show the weights of one layer, divided by their largest magnitude, which is printed below."""
    peak = float(weights.abs().max())
    panel.axis("on")
    scale: dict[str, Any] = {"cmap": DIVERGING, "vmin": -1} if signed else {"cmap": SEQUENTIAL, "vmin": 0}
    heat = panel.imshow((weights / (peak or 1)).cpu().numpy(), vmax=1, aspect="auto", **scale)
    panel.set_box_aspect(view.grid_size[0] / view.grid_size[1])
    panel.set_title(view.name, fontsize=9)
    panel.set_xlabel(f"largest {peak:.2g}", fontsize=8.5)
    hide_ticks(panel)
    ratio = [own / grid for own, grid in zip(weights.shape, view.grid_size, strict=True)]
    _outline(panel, (view.token[0] * ratio[0], view.token[1] * ratio[1]), (ratio[0], ratio[1]))
    return heat


def _outline(panel: Axes, token: tuple[float, float], size: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    for colour, width in (("white", 3.0), (MARK, 1.6)):
        place = (token[1] - 0.5, token[0] - 0.5)
        panel.add_patch(Rectangle(place, size[1], size[0], fill=False, edgecolor=colour, linewidth=width, clip_on=False))


def draw_matrix(view: MatrixView, title: str) -> bytes:
    """Draw the matrix of one head, with its convolution if there is one, and the singular values (float64); returns a PNG.

    Args:
        view: From :func:`view_matrix`.
        title: Title of the picture.
    """
    matrices = {"attention": view.attention}
    if view.convolution is not None:
        matrices |= {"convolution": view.convolution, "their sum": view.attention + view.convolution}
    with styled():
        figure = new_figure(3.5 * (len(matrices) + 1) + 0.4, 3.7)
        panels = figure.subplots(1, len(matrices) + 1)
        for panel, (name, matrix) in zip(panels, matrices.items(), strict=False):
            _show_matrix(panel, name, matrix)
        _show_singular_values(panels[-1], matrices)
        figure.suptitle(title, fontsize=12)
        return to_png(figure)


def _show_matrix(panel: Axes, name: str, matrix: Tensor) -> None:
    low, high = float(matrix.min()), float(matrix.max())
    limit = max(abs(low), abs(high)) or 1
    scale: dict[str, Any] = {"cmap": DIVERGING, "vmin": -limit} if low < 0 else {"cmap": SEQUENTIAL, "vmin": 0}
    heat = panel.imshow(matrix.cpu().numpy(), vmax=limit, interpolation="nearest", **scale)
    panel.set_title(name)
    panel.set_xlabel("key token")
    panel.set_ylabel("query token")
    panel.figure.colorbar(heat, ax=panel, shrink=0.75, label="weight")


def _show_singular_values(panel: Axes, matrices: dict[str, Tensor]) -> None:
    for (name, matrix), dashes, colour in zip(matrices.items(), DASHES, LINES, strict=False):
        values = singular_values(matrix)
        panel.semilogy(range(1, len(values) + 1), values, dashes, lw=2, color=colour, label=name)
    threshold = max(next(iter(matrices.values())).shape) * torch.finfo(torch.float64).eps
    panel.axhline(threshold, color=PALE, lw=1.2, ls=(0, (5, 3, 1, 3)), label="below: no rank")
    panel.set_ylim(1e-18, 3)
    panel.set_xlabel("index")
    panel.set_ylabel("singular value, in the largest")
    panel.set_title("singular values")
    legend_below(panel)
    add_grid(panel)


def draw_angles(angles: Angles, title: str) -> bytes:
    """Draw how f_p moves the cosines of queries and keys whose largest entries coincide, and of the others; returns a PNG.

    Args:
        angles: From :func:`flatten_transformer.analysis.measure_angles`.
        title: Title of the picture.
    """
    pairs = {"same": "largest entries coincide", "other": "largest entries differ"}
    with styled():
        figure = new_figure(9.5, 4.0)
        for panel, (kind, name) in zip(figure.subplots(1, 2, sharex=True), pairs.items(), strict=True):
            for values, mean, label, colour, dashes in (
                (angles.before[kind], angles.mean_before[kind], "before f_p", LINES[0], "--"),
                (angles.after[kind], angles.mean_after[kind], "after f_p", LINES[1], "-"),
            ):
                edges = np.linspace(0, 1, BINS + 1)
                line = panel.stairs(np.array(values) * 100, edges, color=colour, lw=2, ls=dashes)
                line.set_label(f"{label}, mean {mean:.2f}")
                panel.stairs(np.array(values) * 100, edges, color=colour, alpha=0.15, fill=True)
            moved = "rose" if kind == "same" else "fell"
            panel.set_title(f"{name}: {angles.pairs[kind]:,} pairs, {angles.moved_as_stated[kind]:.0%} {moved}")
            panel.set_xlabel("cosine of query and key features")
            panel.set_ylabel("share of the pairs, %")
            legend_below(panel)
            add_grid(panel)
        figure.suptitle(title, fontsize=12)
        return to_png(figure)
