"""Plots of reports: lines over tokens for a sweep, bars for single shapes and models."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flatten_transformer.benchmark.growth import crossover, fastest
from flatten_transformer.benchmark.machine import Header
from flatten_transformer.benchmark.report import ATTENTION, RELEASED, SOFTMAX, Point, Report
from flatten_transformer.utils.atomic_file import write_figure
from flatten_transformer.utils.picture_style import LINES, PALE, add_grid, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAMILIES = {"deit": "DeiT", "pvt": "PVT", "pvt_v2": "PVTv2", "swin": "Swin", "cswin": "CSwin"}
_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY, _ = LINES
_INK, _UNREACHABLE, _RELEASED = "#222222", "#dddddd", "#555555"
_OLIVE, _WINE = "#999933", "#882255"  # Paul Tol's, which colour-blind eyes tell from those above
_TITLE: Any = {"loc": "left", "fontweight": "bold"}


class _Style(NamedTuple):
    label: str
    colour: str
    dashes: str = "-"
    width: float = 1.6


# Ours is blue and heavy, the released form grey, softmax warm. No two of one race have one colour: bars have no dashes.
_STYLES = {
    "ours": _Style("ours", _BLUE, width=3.2),
    "ours-portable": _Style("ours, portable", _SKY, "--"),
    "ours-portable-compiled": _Style("ours, portable, compiled", _SKY, ":"),
    "ours-cpp": _Style("ours, C++", _PURPLE, "--"),
    "ours-triton": _Style("ours, Triton", _PURPLE, "--"),
    "ours-compiled": _Style("ours, compiled", _SKY),
    "released": _Style("released form", _RELEASED),
    "released-compiled": _Style("released form, compiled", _RELEASED, "--"),
    "relu-linear": _Style("ReLU linear", _GREEN, "-."),
    "softmax": _Style("softmax", _VERMILION),
    "softmax-compiled": _Style("softmax, compiled", _VERMILION, "--"),
    "softmax-math": _Style("softmax, math", _ORANGE, ":"),
    "softmax-efficient": _Style("softmax, memory-efficient", _OLIVE, "-."),
    "softmax-flash": _Style("softmax, flash", _VERMILION, "-."),
    "softmax-cudnn": _Style("softmax, cuDNN", _WINE, "--"),
}


def draw(report: Report, path: Path) -> None:
    """Plot a report into a PNG file: lines if attention was measured at three sizes or more, else bars.

    Args:
        report: Measurements.
        path: PNG file.
    """
    with styled():
        figure = _sweep(report) if _is_sweep(report.points) else _bars(report)
        _add_legend(figure, machine_caption(report.header))
        write_figure(path, figure, tight=True)


def _is_sweep(points: Sequence[Point]) -> bool:
    attention = [point for point in points if point.subject == ATTENTION]
    sizes = {point.shape["tokens"] for point in attention}
    return len(sizes) >= 3 and len({(point.shape["channels"], point.shape["heads"]) for point in attention}) == 1


def machine_caption(header: Header) -> str:
    """Return machine, versions and date of a measurement, for below its picture."""
    threads = f", threads: {header['threads']}" if header.get("device") == "cpu" else ""
    versions = f"torch {header.get('torch')} · commit {header.get('commit')}"
    date = str(header.get("date")).partition("T")[0]
    return f"{header.get('device_name')}{threads} · {versions} · {date}"


def _add_legend(figure: Figure, caption: str) -> None:
    """Put one legend below all axes, titled with the machine."""
    handles = {text: handle for axis in figure.axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(5, int(figure.get_figwidth() / 2.3)))
    legend = figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, handlelength=3.4
    )
    legend.set_title(caption)
    legend.get_title().set(color=PALE, fontsize=8.5)


def _sweep(report: Report) -> Figure:
    """Plot time and memory per sample against tokens, one row per dtype and direction."""
    points = [point for point in report.points if point.subject == ATTENTION]
    measured = {point.shape["tokens"] for point in points if point.median_us is not None}
    points = [point for point in points if point.shape["tokens"] in measured]  # the floor alone needs no room
    rows = list(dict.fromkeys((point.dtype, point.direction) for point in points))
    figure = new_figure(12.5, 4.3 * len(rows) + 0.9)
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (dtype, direction), (time_axis, memory_axis) in zip(rows, axes, strict=True):
        row = [point for point in points if (point.dtype, point.direction) == (dtype, direction)]
        _log_axes(time_axis, row, time_tick)
        _log_axes(memory_axis, row, _memory_ticks)
        _draw_lines(time_axis, row, "median_us")
        _draw_lines(memory_axis, row, "peak_mib")
        _draw_floor(time_axis, row)
        _mark_crossover(time_axis, row)
        time_axis.set_title(f"{direction}, {dtype}: time of one sample", **_TITLE)
        memory_axis.set_title(f"{direction}, {dtype}: peak memory of one sample", **_TITLE)
    shape = points[0].shape
    heads = f"{shape['heads']} heads of {shape['channels'] // shape['heads']} channels"
    figure.suptitle(f"Attention over N tokens, {heads}", x=0.01, ha="left", fontsize=14, fontweight="bold")
    return figure


def _draw_lines(axis: Axes, points: Sequence[Point], key: str) -> None:
    for name in dict.fromkeys(point.contender for point in points):
        series = [(p.shape["tokens"], p.per_sample(getattr(p, key))) for p in points if p.contender == name]
        measured = [(tokens, value) for tokens, value in series if value]
        if not measured:
            continue
        style = _STYLES[name]
        front = 5 if name == "ours" else 3
        axis.plot(*zip(*measured, strict=True), style.dashes, marker="o", ms=style.width + 2, lw=style.width, color=style.colour,
                  label=style.label, zorder=front)  # fmt: skip


def _draw_floor(axis: Axes, points: Sequence[Point]) -> None:
    """Plot the time to move inputs and outputs, with the unreachable area below shaded."""
    timed = {p.shape["tokens"] for p in points if p.median_us is not None}
    floors = {n: floor_us for p in points if (n := p.shape["tokens"]) in timed and (floor_us := p.per_sample(p.floor_us))}
    if floors:
        tokens, floors_us = list(floors), list(floors.values())
        axis.plot(tokens, floors_us, color=PALE, lw=1.2, ls=(0, (6, 3)), label="floor: bytes at copy speed", zorder=2)
        axis.fill_between(tokens, floors_us, min(floors_us) / 1e3, color=_UNREACHABLE, alpha=0.5, lw=0, zorder=1)
        axis.set_ylim(bottom=min(floors_us) / 2)


def _mark_crossover(axis: Axes, points: Sequence[Point]) -> None:
    ours, softmax = fastest(points, lambda name: name == "ours"), fastest(points, lambda name: name.startswith(SOFTMAX))
    turn = crossover(ours, softmax)
    if turn is None:
        return
    axis.axvline(turn, color=_INK, lw=1, ls=":", zorder=2)
    axis.annotate(
        f"from N ≈ {_round(turn):,} on\nours is faster than\nthe fastest softmax",
        (turn, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(6, 0),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=_INK,
    )


def _round(value: float) -> int:
    """Round to two digits, the precision of the interpolation."""
    digits = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return round(value / digits) * digits


def _log_axes(axis: Axes, points: Sequence[Point], tick: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    axis.set_yscale("log")
    tokens = sorted({point.shape["tokens"] for point in points})
    axis.set_xticks([n for i, n in enumerate(tokens) if i == 0 or n >= 1.6 * tokens[i - 1]])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tokens_tick(round(value))))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(10, numticks=12))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.set_xlabel("tokens N")
    add_grid(axis)


def _tokens_tick(tokens: int) -> str:
    """Format 784 as 784, 65,536 as 64k and 1,048,576 as 1M."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if tokens >= 4 * 2**10 and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return f"{tokens:,}"


def time_tick(us: float) -> str:
    """Return a round time in a fitting unit.

    Example:
        >>> time_tick(500), time_tick(2e3)
        ('500 µs', '2 ms')
    """
    return f"{us / 1e6:g} s" if us >= 1e6 else f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} µs"


def _memory_ticks(mib: float) -> str:
    return f"{mib:,.0f} MiB" if mib >= 1 else f"{mib:g} MiB"


def _bars(report: Report) -> Figure:
    """Plot the speed-up of each contender over the baseline, one row per dtype and direction."""
    points = report.points
    baseline = SOFTMAX if any(SOFTMAX in point.time_ratios for point in points) else RELEASED
    rows = list(dict.fromkeys((point.dtype, point.direction) for point in points))
    groups = list(dict.fromkeys(_group(point) for point in points))
    timed = {point.contender for point in points if baseline in point.time_ratios}
    names = [name for name in _STYLES if name in timed and name != baseline]
    width = min(16.0, 3.0 + 0.28 * len(groups) * (len(names) + 1.5))
    figure = new_figure(max(8.0, width), 3.4 * len(rows) + 0.8)
    for axis, (dtype, direction) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        row = [point for point in points if (point.dtype, point.direction) == (dtype, direction)]
        _draw_bars(axis, row, groups, names, baseline)
        axis.set_title(f"{direction}, {dtype}", **_TITLE)
    what = "the softmax namesake" if baseline == SOFTMAX else "the released form"
    figure.suptitle(f"Times as fast as {what}", x=0.01, ha="left", fontsize=14, fontweight="bold")
    return figure


def _draw_bars(axis: Axes, points: Sequence[Point], groups: Sequence[str], names: Sequence[str], baseline: str) -> None:
    """Plot a bar per contender and group: the median ratio over rounds, with whiskers at the quartiles."""
    width = 0.84 / max(1, len(names))
    for place, name in enumerate(names):
        style = _STYLES[name]
        spreads = {
            groups.index(_group(p)): p.time_ratios[baseline] for p in points if p.contender == name and baseline in p.time_ratios
        }
        heights = [1 / spread.median for spread in spreads.values()]
        below = [1 / spread.median - 1 / spread.q3 for spread in spreads.values()]
        above = [1 / spread.q1 - 1 / spread.median for spread in spreads.values()]
        x = [group + (place - (len(names) - 1) / 2) * width for group in spreads]
        style_args: dict[str, Any] = {
            "color": style.colour,
            "hatch": "////" if name.endswith("compiled") else None,  # the colour is that of its eager form
            "edgecolor": "white",
            "linewidth": 0,
            "label": style.label,
            "ecolor": _INK,
            "error_kw": {"elinewidth": 1},
            "zorder": 3,
        }
        bars = axis.bar(x, heights, width * 0.92, yerr=[below, above], **style_args)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # no line runs through a number
        axis.bar_label(bars, list(map(_digits, heights)), fontsize=8, padding=3, color=_INK, zorder=6, bbox=box)
    axis.axhline(1, color=_STYLES[baseline].colour, lw=1.6, zorder=4, label=f"{_STYLES[baseline].label} = 1")
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylabel("times as fast")
    axis.margins(y=0.14)
    add_grid(axis, "y")
    axis.tick_params(axis="x", length=0)


def _digits(ratio: float) -> str:
    """Format a ratio with two decimals, or with one digit where these would be zeros."""
    return f"{ratio:.2f}" if ratio >= 0.005 else f"{ratio:.1g}"


def _group(point: Point) -> str:
    """Return the two-line label of a group of bars."""
    shape = point.shape
    if point.subject == ATTENTION:
        plane = f"{shape['height']}²" if shape["height"] == shape["width"] else f"{shape['height']}·{shape['width']}"
        return f"{shape['batch']} × {plane} tokens\nC {shape['channels']}, {shape['heads']} heads"
    return f"{model_title(point.subject)}\n{shape['image_px']} px, batch {shape['batch']}"


def model_title(name: str) -> str:
    """Return the name that papers give a model, without its image size; other names as they are.

    Example:
        >>> model_title("flatten_swin_tiny_patch4_224"), model_title("flatten_pvt_v2_b0"), model_title("resnet50")
        ('FLatten-Swin-T', 'FLatten-PVTv2-B0', 'resnet50')
    """
    found = re.fullmatch(r"flatten_(\w+?)_(tiny|small|medium|base|large|b\d)(_\w+)?", name)
    if found is None or found[1] not in _FAMILIES:
        return name
    size = found[2] if len(found[2]) == 2 else found[2][0]
    return f"FLatten-{_FAMILIES[found[1]]}-{size.upper()}"
