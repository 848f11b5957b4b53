"""Pictures of a model that was turned linear: errors by block and stage, times by size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatten_transformer.benchmark.linearized import Judgement
from flatten_transformer.benchmark.linearized_times import STUDENT, TEACHER, crossing
from flatten_transformer.benchmark.machine import Header
from flatten_transformer.benchmark.picture import machine_caption, time_tick
from flatten_transformer.benchmark.report import Point
from flatten_transformer.benchmark.table import share_label
from flatten_transformer.utils.atomic_file import write_figure
from flatten_transformer.utils.picture_style import LINES, MARKERS, PALE, add_grid, legend_below, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS: dict[str, dict[str, Any]] = {  # as in other races: ours blue and heavy, softmax warm
    TEACHER: {"color": LINES[1], "lw": 1.8, "marker": "s", "label": "teacher, softmax"},
    STUDENT: {"color": LINES[0], "lw": 3.0, "marker": "o", "label": "student, linear"},
}


def draw_errors(path: Path, model: str, attentions: Sequence[str], stages: Mapping[str, Judgement]) -> None:
    """Plot the error of each attention after each stage into a PNG file.

    Args:
        path: PNG file.
        model: Name of the model.
        attentions: All attentions of the teacher; those that have no error stayed softmax.
        stages: By name, in order.
    """
    with styled():
        write_figure(path, errors_figure(model, attentions, stages))


def draw_times(path: Path, model: str, header: Header, points: Sequence[Point]) -> None:
    """Plot the times of teacher and student against image size into a PNG file, and mark where the student becomes faster.

    Args:
        path: PNG file.
        model: Name of the model.
        header: Machine and versions.
        points: From :func:`~flatten_transformer.benchmark.linearized_times.measure_times`.
    """
    with styled():
        write_figure(path, times_figure(model, header, points))


def errors_figure(model: str, attentions: Sequence[str], stages: Mapping[str, Judgement]) -> Figure:
    """Return the figure of :func:`draw_errors`."""
    figure = new_figure(max(6.0, 2.5 + 0.32 * len(attentions)), 4.2)
    axis = figure.subplots()
    for number, (name, judged) in enumerate(stages.items()):
        errors = [judged.blocks.get(attention, math.nan) for attention in attentions]
        shown = [error if error > 0 else math.nan for error in errors]
        look: dict[str, Any] = {"color": PALE, "linestyle": "--"} if number == 0 else line_style(number - 1)
        axis.plot(shown, marker=MARKERS[number % len(MARKERS)], lw=2, ms=6, label=_summary(name, judged), **look)
    for accuracy in {judged.teacher_accuracy for judged in stages.values()} - {None}:
        axis.plot([], [], " ", label=f"teacher: accuracy {share_label(accuracy)}")
    _shade_kept(axis, attentions, stages)
    _log_y(axis, "{:g}".format)
    axis.set_xticks(range(len(attentions)))
    axis.set_xlim(-0.6, len(attentions) - 0.4)
    axis.set_xlabel("block")
    axis.set_ylabel("‖student − teacher‖² / ‖teacher‖²")
    axis.set_title(f"{model}\nerror of each attention on its teacher's own inputs", loc="left")
    legend_below(axis, columns=1)
    return figure


def _shade_kept(axis: Axes, attentions: Sequence[str], stages: Mapping[str, Judgement]) -> None:
    kept = [index for index, name in enumerate(attentions) if not any(name in one.blocks for one in stages.values())]
    for index in kept:
        label = "stays softmax" if index == kept[0] else None
        axis.axvspan(index - 0.5, index + 0.5, color="#eeeeee", lw=0, zorder=0, label=label)


def _summary(name: str, judged: Judgement) -> str:
    """Return the label of a stage."""
    shares = {"agrees with the teacher on": judged.agreement, "accuracy": judged.accuracy}
    said = ", ".join(f"{what} {share_label(share)}" for what, share in shares.items() if share is not None)
    return f"{name}: {said}" if said else name


def times_figure(model: str, header: Header, points: Sequence[Point]) -> Figure:
    """Return the figure of :func:`draw_times`."""
    figure = new_figure(7.0, 4.8)
    axis = figure.subplots()
    timed = [point for point in points if point.median_us is not None]
    for contender, look in _LOOKS.items():
        own = [point for point in timed if point.contender == contender]
        sizes = [point.shape["image_px"] for point in own]
        q1, median, q3 = ([p.per_sample(value(p)) for p in own] for value in _QUARTILES)
        axis.fill_between(sizes, q1, q3, color=look["color"], alpha=0.2, lw=0)  # type: ignore[arg-type]
        axis.plot(sizes, median, ms=6, **look)  # type: ignore[arg-type]
    _log_axes(axis, sorted({point.shape["image_px"] for point in timed}))
    _mark_crossing(axis, points)
    axis.set_title(f"{model}\ntime of an image, {points[0].dtype}, batch {points[0].shape['batch']}", loc="left")
    legend_below(axis)
    figure.supxlabel(machine_caption(header), color=PALE, fontsize=8)
    return figure


_QUARTILES: Any = (lambda p: p.q1_us, lambda p: p.median_us, lambda p: p.q3_us)


def _log_axes(axis: Axes, sizes_px: Sequence[int]) -> None:
    axis.set_xscale("log")
    apart = [px for i, px in enumerate(sizes_px) if i == 0 or px >= 1.15 * sizes_px[i - 1]]
    axis.set_xticks(apart, [f"{size_px:,}" for size_px in apart])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("side of the image, pixels")
    _log_y(axis, time_tick)


def _log_y(axis: Axes, tick: Callable[[float], str]) -> None:
    """Make the upright axis logarithmic, with plain numbers even within one decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1,) if high > 1e4 * low else (1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    add_grid(axis)


def _mark_crossing(axis: Axes, points: Sequence[Point]) -> None:
    turn = crossing(points)
    if turn.crossing_px is None:
        return
    low, high = axis.get_xlim()
    side = -1 if turn.crossing_px**2 > low * high else 1  # of the text: where there is room
    axis.axvline(turn.crossing_px, color="#222222", lw=1, ls=":", zorder=2)
    axis.annotate(
        f"from about {turn.crossing_px:,} px on\nthe student is faster",
        (turn.crossing_px, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(6 * side, 0),
        textcoords="offset points",
        va="top",
        ha="left" if side > 0 else "right",
        fontsize=9,
    )
