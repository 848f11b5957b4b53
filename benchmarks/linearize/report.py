"""Page and picture of the study of students: what the result files say."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.studies import Result, apart_by_chance, pooled, spread_out
from flatten_transformer.utils.atomic_file import write_figure
from flatten_transformer.utils.picture_style import LINES, PALE, add_grid, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEACHER = "softmax"
_NEAR = 90  # percent of the teacher's accuracy
UNTRAINED, STAGES = "untrained", ("stage 1", "stage 2", "stage 3")


class Row(NamedTuple):
    """What the results of one name say, by stage and then by seed; what has no stages stands in the last. Shares are percent."""

    name: str
    accuracies: dict[str, list[float]]  # of the test images
    shares: dict[str, list[float]]  # of the accuracy of the seed's teacher
    errors: dict[str, list[float]]  # ratios, of the linear attentions, mean over the blocks; none without stages
    times: Mapping[str, float]  # of all steps until then; the teacher's take 100

    @property
    def has_stages(self) -> bool:
        """Whether this is a student."""
        return UNTRAINED in self.accuracies


def rows_of(results: Sequence[Result], names: Sequence[str], times: Mapping[str, Mapping[str, float]]) -> dict[str, Row]:
    """Return the rows by name, in the order of the names; a result without its teacher's is left out.

    Args:
        results: What the result files hold.
        names: Of the rows.
        times: What the steps of each name take, by stage, in percent of the teacher's; may be empty.
    """
    teachers = {result["seed"]: result for result in results if result["name"] == TEACHER}
    rows = {}
    for name in names:
        row = Row(name, {}, {}, {}, times.get(name, {}))
        for result in results:
            if result["name"] == name and result["seed"] in teachers:
                _add(row, result, teachers[result["seed"]])
        if row.accuracies:
            rows[name] = row
    return rows


def _add(row: Row, result: Result, teacher: Result) -> None:
    stages = result.get("stages", {STAGES[-1]: result})

    for stage, judged in stages.items():
        row.accuracies.setdefault(stage, []).append(100 * judged["accuracy"])
        row.shares.setdefault(stage, []).append(100 * judged["accuracy"] / teacher["accuracy"])
        if blocks := judged.get("blocks"):
            row.errors.setdefault(stage, []).append(statistics.fmean(blocks.values()))


def page(rows: Mapping[str, Row], before: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        rows: Of :func:`rows_of`.
        before: What a row was begun with, by name.
    """
    return "\n".join(
        [
            "# Study: a softmax DeiT turned linear",
            "",
            "Teachers: a DeiT of four blocks of 32 channels, 14 × 14 tokens, by the recipe `fashion_mnist/study` with softmax",
            "attention, one for each seed. Students: its linear forms, by the stages of `flatten linearize`:",
            "`OMP_NUM_THREADS=1 python benchmarks/linearize/run.py`. Each run is a file in `results/`, with machine and",
            "versions. The script writes this page. All accuracies are of the 10,000 test images, which chose nothing. Times",
            "are medians of training steps without the optimizer, of all kinds in turn (`--speed_s`; machine and rounds in",
            "`speed.json`).",
            "",
            *_stages_table([row for row in rows.values() if row.has_stages]),
            *_labels_table(rows, before),
            "![Left: the share of its teacher's accuracy that each student has after each stage. Right: accuracy against",
            "training time, of students trained on, and of twins from scratch](linearize.png)",
            "",
        ]
    )


def _stages_table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    near = [row.shares[STAGES[-1]] for row in rows if _is_near(row)]
    deviation, freedom = pooled(near)
    seeds = min(map(len, near), default=0)
    chance = [
        "",
        f"After the last stage seeds differ by {deviation:.2f} points (the deviation of all rows above {_NEAR} %, pooled,",
        f"{freedom} degrees of freedom). Two given means of {seeds} seeds less than",
        f"{apart_by_chance(deviation, freedom, seeds):.2f} points apart may be so by chance (95 %, two-sided t-test).",
    ]
    return [
        "## What each stage brings",
        "",
        "Accuracy in percent of the teacher's, mean ± deviation over the seeds; time of the steps in percent of those of the",
        "teacher's training; errors of the attentions, ‖student − teacher‖² / ‖teacher‖², mean over 1,024 test images and",
        "the blocks.",
        "",
        "| student | untrained | stage 1 | stages 1, 2 | stages 1, 2, 3 | time, stage 1 | all | error, untrained | stage 1 | "
        "stage 3 | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_stages_line, rows),
        *(chance if freedom else []),
        "",
    ]


def _stages_line(row: Row) -> str:
    shares = [_spread(row.shares[stage]) for stage in (UNTRAINED, *STAGES)]
    errors = [_mean(row.errors.get(stage, ()), 3) for stage in (UNTRAINED, STAGES[0], STAGES[-1])]
    times = [_number(row.times.get(stage), 1) for stage in (STAGES[0], STAGES[-1])]
    return f"| {row.name} | {' | '.join([*shares, *times, *errors])} | {len(row.shares[STAGES[-1]])} |"


def _is_near(row: Row) -> bool:
    """Return whether the student has become like its teacher, so that its deviation is that of the others."""
    return statistics.fmean(row.shares[STAGES[-1]]) > _NEAR


def _labels_table(rows: Mapping[str, Row], before: Mapping[str, str]) -> list[str]:
    compared = compared_by_labels(rows, before)
    deviation, freedom = pooled([row.accuracies[STAGES[-1]] for row in compared])
    least = min((len(row.accuracies[STAGES[-1]]) for row in compared), default=0)
    chance = [
        "",
        f"Means of {least} seeds less than {apart_by_chance(deviation, freedom, least):.2f} points apart may be so by chance.",
    ]
    return [
        "## Trained on, against trained from scratch",
        "",
        "Accuracy in percent; time of all steps from the random weights on, those of the teacher included, in percent of the",
        "teacher's.",
        "",
        "| model | accuracy | time | seeds |",
        "|---|---|---|---|",
        *(
            f"| {row.name} | {_spread(row.accuracies[STAGES[-1]])} | {_number(total_time(row, rows, before), 0)} | "
            f"{len(row.accuracies[STAGES[-1]])} |"
            for row in compared
        ),
        *(chance if freedom else []),
        "",
    ]


def compared_by_labels(rows: Mapping[str, Row], before: Mapping[str, str]) -> list[Row]:
    """Return what has no stages, and the students that others begin with."""
    return [row for row in rows.values() if not row.has_stages or row.name in before.values()]


def total_time(row: Row, rows: Mapping[str, Row], before: Mapping[str, str]) -> float | None:
    """Return the time of a training and of all before it, in percent of the teacher's; None if it was not measured."""
    own = row.times.get(STAGES[-1])
    earlier = before.get(row.name, TEACHER if row.has_stages else None)
    if own is None or earlier is None:
        return own
    rest = total_time(rows[earlier], rows, before) if earlier in rows else None
    return None if rest is None else rest + own


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _mean(values: Sequence[float], digits: int) -> str:
    return _number(statistics.fmean(values) if values else None, digits)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def draw(rows: Mapping[str, Row], before: Mapping[str, str], path: Path) -> None:
    """Draw the shares by stage, and accuracy against time, into a PNG file."""
    figure = new_figure(13, 6)
    with styled():
        left, right = figure.subplots(1, 2, width_ratios=[1.4, 1])
        _draw_stages(left, [row for row in rows.values() if row.has_stages])
        _draw_labels(right, rows, before)
        write_figure(path, figure)


def _draw_stages(axis: Axes, rows: Sequence[Row]) -> None:
    below = [f"{row.name} {statistics.fmean(row.shares[STAGES[-1]]):.0f} %" for row in rows if not _is_near(row)]
    rows = [row for row in rows if _is_near(row)]
    for row in rows:
        means = [statistics.fmean(row.shares[stage]) for stage in STAGES]
        axis.plot(range(len(STAGES)), means, marker="o", markersize=4, color=_colour(row.name), alpha=0.9)
    axis.axhline(100, color=PALE, linewidth=1)
    ends = {row.name: statistics.fmean(row.shares[STAGES[-1]]) for row in rows}
    _name(axis, {name: (len(STAGES) - 1, end) for name, end in ends.items()}, len(STAGES) - 0.85)
    axis.set_xticks(range(len(STAGES)), ["stage 1", "stages 1, 2", "stages 1, 2, 3"])
    axis.set_xlim(right=len(STAGES) + 0.5)
    title = "\n".join(["Students by stage; grey line: the teacher", *(f"far below: {name}" for name in below)])
    axis.set(ylabel="% of the teacher's accuracy", title=title)
    add_grid(axis)


def _draw_labels(axis: Axes, rows: Mapping[str, Row], before: Mapping[str, str]) -> None:
    points = {}
    for row in compared_by_labels(rows, before):
        time = total_time(row, rows, before)
        if time is None:
            continue
        values = row.accuracies[STAGES[-1]]
        points[row.name] = (time, statistics.fmean(values))
        bar = statistics.stdev(values) if len(values) > 1 else None
        axis.errorbar(*points[row.name], yerr=bar, fmt="o", capsize=3, color=_colour(row.name))
    if not points:
        axis.set_axis_off()
        return
    longest = max(time for time, _ in points.values())
    _name(axis, points, 1.06 * longest)
    axis.set_xlim(right=1.7 * longest)
    axis.set(xlabel="time of all steps, % of the teacher's", ylabel="test accuracy, %", title="Trained on, or from scratch")
    add_grid(axis)


def _name(axis: Axes, points: Mapping[str, tuple[float, float]], column: float) -> None:
    """Write names beside points, none over another."""
    low, high = axis.get_ylim()
    heights = spread_out([y for _, y in points.values()], (high - low) / 22)
    for (name, point), height in zip(points.items(), heights, strict=True):
        line = {"arrowstyle": "-", "relpos": (0, 0.5), "color": _colour(name), "alpha": 0.4, "linewidth": 0.7}
        axis.annotate(name, point, (column, height), arrowprops=line, color=_colour(name), va="center", fontsize=9)
    axis.set_ylim(min([low, *heights]) - (high - low) / 40, max([high, *heights]) + (high - low) / 40)


def _colour(name: str) -> str:
    """Return the colour of an attention, whose name a row's begins with."""
    return dict(zip(_ATTENTIONS, LINES, strict=False)).get(name.split()[0], PALE)


_ATTENTIONS: Iterable[str] = ("focused", TEACHER, "relu", "enhanced", "inline", "polaformer")
