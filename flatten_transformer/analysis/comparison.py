"""Plots of several models: rank and sharpness by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flatten_transformer.analysis.metrics import LayerNumbers
from flatten_transformer.analysis.plots import to_png
from flatten_transformer.utils.picture_style import LINES, MARKERS, PALE, add_grid, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Models = Mapping[str, Sequence[LayerNumbers]]  # numbers of each layer, by the label of the model


def draw_ranks(models: Models) -> bytes:
    """Draw numerical and effective rank by layer, means over heads; returns a PNG."""
    with styled():
        figure = new_figure(11, 4.6)
        numerical, effective = figure.subplots(1, 2)
        for axis, key, name in ((numerical, "rank", "numerical rank"), (effective, "effective_rank", "effective rank")):
            _draw_lines(axis, models, key)
            axis.set_ylabel(f"{name} of the attention matrix")
            axis.set_title(name)
        _draw_limits(numerical, models)
        pyramid = len({layer.queries for layers in models.values() for layer in layers if layer.heads}) > 2
        for axis in (numerical, effective):
            if pyramid:  # ranks from a thousand tokens to a few
                axis.set_yscale("log", base=2)
                axis.yaxis.set_major_formatter("{x:g}")
            else:
                axis.set_ylim(bottom=0)
        _add_legend(figure)
        return to_png(figure)


def draw_sharpness(models: Models, top_k: int) -> bytes:
    """Draw entropy and top-k mass of the rows and similarity of the outputs by layer, means over heads; returns a PNG."""
    with styled():
        figure = new_figure(14, 4.6)
        entropy, mass, similarity = figure.subplots(1, 3)
        _draw_lines(entropy, models, "entropy_bits")
        keys = {layer.keys for layers in models.values() for layer in layers if layer.heads}
        if len(keys) == 1:
            most = math.log2(keys.pop())
            entropy.axhline(most, color=PALE, lw=1.2, ls=(0, (1, 2)), label="all keys alike, log₂ M")
        entropy.set(title="entropy of a row: low is sharp", ylabel="bits", ylim=(0, None))
        _draw_lines(mass, models, "top_k_mass")
        mass.set(title=f"share of the {top_k} largest weights: high is sharp", ylabel="share of a row", ylim=(0, 1.02))
        _draw_lines(similarity, models, "similarity")
        similarity.set(title="likeness of output tokens: low is diverse", ylabel="mean cosine of two tokens", ylim=(None, 1.02))
        _add_legend(figure)
        return to_png(figure)


def _draw_lines(axis: Axes, models: Models, key: str) -> None:
    """Draw a number by layer: filled marks the attention alone, hollow ones with the convolution."""
    from matplotlib.ticker import MaxNLocator

    for (label, layers), colour, marker in zip(models.items(), LINES, MARKERS, strict=False):
        for restored in (False, True):
            values = [layer.mean(key, restored=restored) for layer in layers]
            points = [(place, value) for place, value in enumerate(values) if value is not None]
            if not points:
                continue
            name = f"{label}, with convolution" if restored else label
            dashes, face, size = ("--", "none", 10) if restored else ("-", colour, 6)  # larger: seen where they coincide
            axis.plot(*zip(*points, strict=True), dashes, marker=marker, ms=size, mfc=face, color=colour, lw=1.8, label=name)
    axis.set_xlabel("layer")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_grid(axis)


def _draw_limits(axis: Axes, models: Models) -> None:
    """Draw the largest possible rank and the channels of a head, where all layers agree on them."""
    measured = [layer for layers in models.values() for layer in layers if layer.heads]
    for values, name, dashes in (
        ({min(layer.queries, layer.keys) for layer in measured}, "full rank", (0, (1, 2))),
        ({layer.head_dim for layer in measured}, "channels of a head", (0, (5, 3, 1, 3))),
    ):
        if len(values) == 1:
            value = values.pop()
            axis.axhline(value, color=PALE, lw=1.2, ls=dashes, label=f"{name}, {value}", zorder=1)


def _add_legend(figure: Figure) -> None:
    """Add one legend below all axes, each entry once."""
    handles = {text: handle for axis in figure.axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(len(handles), int(figure.get_figwidth() // 3.4)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
