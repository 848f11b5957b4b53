"""Results of races, in memory and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from flatten_transformer.benchmark.machine import Header
from flatten_transformer.benchmark.timing import Spread

RELEASED, SOFTMAX = "released", "softmax"  # baselines of time ratios
ATTENTION = "attention"  # the subject of `flatten benchmark op`


@dataclass(frozen=True)
class Point:
    """One contender at one shape: its times, or the reason for having none."""

    subject: str  # "attention", or the name of a model
    contender: str
    shape: dict[str, int]  # batch, height, width, channels, heads, tokens; of models batch, image_px
    dtype: str
    direction: str  # "forward", or "forward+backward"
    median_us: float | None = None
    q1_us: float | None = None
    q3_us: float | None = None
    rounds: int = 0
    peak_mib: float | None = None  # beyond inputs and parameters; see memory.peak_mib
    floor_us: float | None = None  # required bytes at measured copy bandwidth
    relative_error: float | None = None  # against the released form
    time_ratios: dict[str, Spread] = field(default_factory=dict)  # own time / baseline's, by round
    reason: str | None = None  # why there is no time

    def per_sample(self, value: float | None) -> float | None:
        """Return a time or memory of the batch, per sample."""
        return None if value is None else value / self.shape["batch"]

    def speedup(self, baseline: str = RELEASED) -> float | None:
        """Return the speed-up over the baseline: the inverse of the median ratio."""
        ratio = self.time_ratios.get(baseline)
        return None if ratio is None else 1 / ratio.median


@dataclass(frozen=True)
class Growth:
    """Scaling exponents of one contender's time and memory per sample in tokens."""

    contender: str
    dtype: str
    direction: str
    from_tokens: int
    to_tokens: int
    time_exponent: float
    memory_exponent: float | None


@dataclass(frozen=True)
class Mean:
    """Geometric mean over all shapes of a contender's speed-up over the released form."""

    contender: str
    dtype: str
    direction: str
    shapes: int
    speedup: float


@dataclass(frozen=True)
class Report:
    """All points, with a header on the machine."""

    header: Header
    points: Sequence[Point]
    growth: Sequence[Growth] = ()
    means: Sequence[Mean] = ()

    def failed_checks(self) -> list[Point]:
        """Return the points of contenders that differ from the released form."""
        return [point for point in self.points if point.reason and point.reason.startswith(RED)]


RED = "check red"  # reason prefix of such a point


def races(points: Iterable[Point]) -> list[list[Point]]:
    """Return the points of each race."""
    return [list(race) for _, race in groupby(points, key=_race)]


def _race(point: Point) -> tuple[object, ...]:
    return point.subject, tuple(point.shape.items()), point.dtype, point.direction


def shape_label(shape: Mapping[str, int]) -> str:
    """Return the label of a shape.

    Example:
        >>> shape_label({"batch": 8, "height": 28, "width": 28, "channels": 192, "heads": 6, "tokens": 784})
        '8 × 28·28 tokens, C 192, 6 heads'
        >>> shape_label({"batch": 1, "image_px": 224})
        '1 image of 224 px'
    """
    if "image_px" in shape:
        return f"{shape['batch']} image{'s' * (shape['batch'] > 1)} of {shape['image_px']} px"
    heads = f"{shape['heads']} head{'s' * (shape['heads'] > 1)}"
    return f"{shape['batch']} × {shape['height']}·{shape['width']} tokens, C {shape['channels']}, {heads}"


def race_title(point: Point) -> str:
    """Return the title of the race of a point.

    Example:
        >>> race_title(Point("flatten_pvt_v2_b0", "ours", {"batch": 8, "image_px": 224}, "float32", "forward"))
        'flatten_pvt_v2_b0, 8 images of 224 px, float32, forward'
    """
    subject = "" if point.subject == ATTENTION else f"{point.subject}, "
    return f"{subject}{shape_label(point.shape)}, {point.dtype}, {point.direction}"


def to_json(report: Report) -> dict[str, Any]:
    """Return a report without its header as JSON values."""
    points = [
        {**asdict(point), "time_ratios": {name: ratio._asdict() for name, ratio in point.time_ratios.items()}}
        for point in report.points
    ]
    return {"points": points, "growth": [asdict(one) for one in report.growth], "means": [asdict(one) for one in report.means]}


def from_json(header: Header, content: Mapping[str, Any]) -> Report:
    """Return the report of the output of :func:`to_json`.

    Example:
        >>> points = [Point("attention", "ours", {"batch": 1}, "float32", "forward", reason="no time")]
        >>> report = Report({"device": "cpu"}, points)
        >>> from_json(report.header, to_json(report)) == report
        True
    """
    points = [Point(**{**point, "time_ratios": _spreads(point["time_ratios"])}) for point in content["points"]]
    growth = tuple(Growth(**one) for one in content["growth"])
    return Report(header, points, growth, tuple(Mean(**one) for one in content["means"]))


def read_report(path: Path) -> Report:
    """Read the report of a file that ``flatten benchmark op`` or ``model`` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return from_json(content["header"], content)


def _spreads(ratios: Mapping[str, Mapping[str, float]]) -> dict[str, Spread]:
    return {name: Spread(**ratio) for name, ratio in ratios.items()}
