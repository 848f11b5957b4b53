"""Results of races, in memory and as JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flatten_transformer.benchmark.machine import Header
from flatten_transformer.benchmark.timing import Spread
from flatten_transformer.utils.atomic_file import write_atomically

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


def write_report(path: Path, report: Report) -> None:
    """Write a report as JSON."""
    write_atomically(path, (json.dumps(_plain(report), indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_report(path: Path) -> Report:
    """Read the output of :func:`write_report`.

    Example:
        >>> file = getfixture("tmp_path") / "report.json"
        >>> report = Report({"device": "cpu"}, [Point("attention", "ours", {"batch": 1}, "float32", "forward", reason="no time")])
        >>> write_report(file, report)
        >>> read_report(file) == report
        True
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    points = [Point(**{**point, "time_ratios": _spreads(point["time_ratios"])}) for point in content["points"]]
    growth = tuple(Growth(**one) for one in content["growth"])
    return Report(content["header"], points, growth, tuple(Mean(**one) for one in content["means"]))


def _plain(report: Report) -> dict[str, object]:
    points = [
        {**asdict(point), "time_ratios": {name: ratio._asdict() for name, ratio in point.time_ratios.items()}}
        for point in report.points
    ]
    return {
        "header": report.header,
        "points": points,
        "growth": [asdict(one) for one in report.growth],
        "means": [asdict(one) for one in report.means],
    }


def _spreads(ratios: Mapping[str, Mapping[str, float]]) -> dict[str, Spread]:
    return {name: Spread(**ratio) for name, ratio in ratios.items()}
