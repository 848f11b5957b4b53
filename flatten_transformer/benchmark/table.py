"""Reports as terminal tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from flatten_transformer.benchmark.report import ATTENTION, RELEASED, SOFTMAX, Point, Report, race_title, races

_LOSS = "▼"


def tables(report: Report) -> list[Table]:
    """Return a table for each race, then the summaries."""
    return [*map(race_table, races(report.points)), *summaries(report)]


def race_table(points: Sequence[Point]) -> Table:
    """Return the table of one race."""
    return _attention_table(points) if points[0].subject == ATTENTION else _model_table(points)


def summaries(report: Report) -> list[Table]:
    """Return the tables of means over shapes and of scaling exponents, as far as there are some."""
    drawn = []
    if report.means and report.means[0].shapes > 1:
        drawn.append(_means_table(report))
    if report.growth:
        drawn.append(_growth_table(report))
    return drawn


def time_label(time_us: float) -> str:
    """Return a time to three digits, in a fitting unit.

    Example:
        >>> time_label(21.44), time_label(1234.5), time_label(4_560_000)
        ('21.4 µs', '1.23 ms', '4.56 s')
    """
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if time_us >= size:
            return f"{_three_digits(time_us / size)} {unit}"
    return f"{_three_digits(time_us)} µs"


def memory_label(mib: float) -> str:
    """Return a size to three digits, in a fitting unit.

    Example:
        >>> memory_label(0.0123), memory_label(12.34), memory_label(2048)
        ('12.6 KiB', '12.3 MiB', '2.00 GiB')
    """
    for unit, size in (("GiB", 1024), ("MiB", 1)):
        if mib >= size:
            return f"{_three_digits(mib / size)} {unit}"
    return f"{_three_digits(mib * 1024)} KiB"


def error_label(error: float) -> str:
    """Return a relative error to two digits.

    Example:
        >>> error_label(0.4567), error_label(12.3), error_label(2.4e-7)
        ('0.46', '12', '2.4e-07')
    """
    return f"{error:#.2g}".rstrip(".")


def share_label(share: float | None) -> str:
    """Return a share in per cent, rounded so that only all is 100.

    Example:
        >>> share_label(0.99996), share_label(1.0), share_label(0.7861), share_label(None)
        ('99.99 %', '100 %', '78.61 %', '')
    """
    if share is None:
        return ""
    return "100 %" if share == 1 else f"{min(100 * share, 99.99):.2f} %"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _attention_table(points: Sequence[Point]) -> Table:
    table = new_table(race_title(points[0]), "contender", "median", "±", "× released", "× floor", "memory", "error")
    best = max((speedup for p in points if not p.contender.startswith("ours") and (speedup := p.speedup())), default=0.0)
    for point in points:
        if point.median_us is None:
            continue
        floor = "" if point.floor_us is None else f"{point.median_us / point.floor_us:.1f}"
        error = "" if point.relative_error is None else f"{point.relative_error:.0e}"
        loses = point.contender.startswith("ours") and (point.speedup() or best) < best
        table.add_row(*_times(point), _speedup(point, loses), floor, _memory(point), error)
    table.caption = _caption(points)
    return table


def _model_table(points: Sequence[Point]) -> Table:
    table = new_table(race_title(points[0]), "contender", "median", "÷ released", "÷ softmax", "images/s", "memory")
    for point in points:
        if point.median_us is None:
            continue
        ratios = [_ratio(point, baseline) for baseline in (RELEASED, SOFTMAX)]
        table.add_row(*_times(point)[:2], *ratios, f"{1e6 * point.shape['batch'] / point.median_us:,.1f}", _memory(point))
    table.caption = _caption(points)
    return table


def _means_table(report: Report) -> Table:
    table = new_table(
        "times as fast as the released form: geometric mean", "contender", "dtype", "direction", "shapes", "× released"
    )
    for mean in report.means:
        table.add_row(mean.contender, mean.dtype, mean.direction, str(mean.shapes), f"{mean.speedup:.2f}")
    return table


def _growth_table(report: Report) -> Table:
    one = report.growth[0]
    title = f"growth with the tokens N from {one.from_tokens:,} on: cost of one sample ~ N^exponent"
    table = new_table(title, "contender", "dtype", "direction", "up to N", "time", "memory")
    for one in report.growth:
        memory = "" if one.memory_exponent is None else f"{one.memory_exponent:.3f}"
        table.add_row(one.contender, one.dtype, one.direction, f"{one.to_tokens:,}", f"{one.time_exponent:.3f}", memory)
    return table


def new_table(title: str, first: str, *others: str) -> Table:
    """Return an empty table: its title, the heading of its names, and those of its numbers."""
    table = Table(
        title=title, title_justify="left", title_style="bold", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _times(point: Point) -> tuple[str, str, str]:
    """Return name, median, and half the interquartile range relative to the median."""
    assert point.median_us is not None
    assert point.q1_us is not None
    assert point.q3_us is not None
    half_width = (point.q3_us - point.q1_us) / 2 / point.median_us
    return point.contender, time_label(point.median_us), f"{half_width:.0%}"


def _memory(point: Point) -> str:
    return "" if point.peak_mib is None else memory_label(point.peak_mib)


def _speedup(point: Point, loses: bool) -> Text:
    """Return the speed-up over the released form, marked if ours loses to the fastest other contender."""
    speedup = point.speedup()
    text = "" if speedup is None else f"{speedup:.2f}"
    return marked(text, loses)


def _ratio(point: Point, baseline: str) -> Text:
    """Return a median ratio with quartiles, marked if ours is slower."""
    ratio = point.time_ratios.get(baseline)
    if ratio is None or point.contender == baseline:
        return Text("")
    loses = point.contender.startswith("ours") and ratio.median > 1
    return marked(f"{ratio.median:.2f} ({ratio.q1:.2f}-{ratio.q3:.2f})", loses)


def marked(text: str, loses: bool) -> Text:
    """Return a number with a mark if it is a loss."""
    return Text(f"{text} {_LOSS}", style="red") if loses else Text(f"{text}  ")


def _caption(points: Sequence[Point]) -> str:
    """Return a legend of the mark, and one line per reason with its untimed contenders."""
    reasons: dict[str, list[str]] = {}
    for point in points:
        if point.median_us is None:
            reasons.setdefault(point.reason or "not measured", []).append(point.contender)
    mark = f"{_LOSS} slower than {'the fastest of the others' if points[0].subject == ATTENTION else 'what it is set against'}"
    return "\n".join([mark, *(f"not timed: {', '.join(names)}: {reason}" for reason, names in reasons.items())])
