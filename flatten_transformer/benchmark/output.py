"""Run races one by one, keep and show the results of each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatten_transformer.benchmark import picture
from flatten_transformer.benchmark.kept import KeptResults
from flatten_transformer.benchmark.race import Case, Plan
from flatten_transformer.benchmark.report import Point, Report, from_json, races, to_json
from flatten_transformer.utils.progress import above_bars, track

if TYPE_CHECKING:
    from rich.console import Console

FOLDER = Path("runs/benchmark")
Measure = Callable[[Plan[Any]], Iterator[list[Point]]]


def run_races(
    kept: KeptResults,
    plans: Sequence[tuple[Plan[Any], Measure]],
    judge: Callable[[list[Point]], Report],
    show: Callable[[list[Point]], None],
) -> Report:
    """Run all races that are not finished yet, keep the results after each, and show each.

    Args:
        kept: File of the results.
        plans: Plans, and what runs them.
        judge: Returns the report of some points.
        show: Shows the points of a race.
    """
    done = kept_races(kept)
    cases: list[Case[Any]] = [case for plan, _ in plans for case in plan.cases]
    points: list[Point] = []
    with kept.telling(), track(cases[len(done) :], done=len(done)) as left:
        for plan, measure in plans:
            own, done = done[: len(plan.cases)], done[len(plan.cases) :]
            measured = measure(plan.after(own))
            for _, before in zip_longest(plan.cases, own):
                if before is None:
                    next(left)
                race = next(measured)
                points += race
                if before is None:
                    kept.write(kept.finished + 1, to_json(judge(points)))
                show(race)
    return judge(points)


def kept_races(kept: KeptResults) -> list[list[Point]]:
    """Return the points of each race in a file of results.

    Raises:
        ValueError: If the file is damaged.
    """
    if not kept.content:
        return []
    with kept.reading() as content:
        found = races(from_json(kept.header, content).points)
        if len(found) != kept.finished:
            raise LookupError(f"{len(found)} races instead of {kept.finished}")
    return found


def show_race(race: Sequence[Point]) -> None:
    """Print the table of a race to stdout."""
    from flatten_transformer.benchmark.table import race_table

    with above_bars():
        _console().print(race_table(race))


def finish(report: Report, file: Path) -> None:
    """Draw a report, print its summary, and raise FloatingPointError if ours differs from the released form."""
    from flatten_transformer.benchmark.table import summaries
    from flatten_transformer.utils.terminal import say

    picture.draw(report, file.with_suffix(".png"))
    _console().print(*summaries(report), sep="\n")
    say(f"Report: {file}, picture: {file.with_suffix('.png')}")
    if failed := report.failed_checks():
        raise FloatingPointError(
            f"{len(failed)} results of ours differ from the released form, so their speed is not reported: see {file}; "
            f"the first is {failed[0].contender}, {failed[0].dtype}, {failed[0].direction}"
        )


def _console() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=110)
