"""Run the races of a command behind a progress bar; write and show the report."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from flatten_transformer.benchmark import picture
from flatten_transformer.benchmark.report import Point, Report, write_report

FOLDER = Path("runs/benchmark")


def collect(races: Iterable[Sequence[Point]], count: int) -> list[Point]:
    """Run all races behind a progress bar."""
    from rich.progress import track

    return [point for points in track(races, "racing", total=count, transient=True) for point in points]


def finish(report: Report, file: Path) -> None:
    """Write and show a report; a contender of ours that computes something else is an error, after all is written."""
    from rich.console import Console

    from flatten_transformer.benchmark.table import tables
    from flatten_transformer.utils.terminal import say

    write_report(file, report)
    picture.draw(report, file.with_suffix(".png"))
    console = Console() if sys.stdout.isatty() else Console(width=110)
    console.print(*tables(report), sep="\n")
    say(f"Report: {file}, picture: {file.with_suffix('.png')}")
    if red := report.failed_checks():
        raise FloatingPointError(
            f"{len(red)} results of ours differ from the released form, so their speed is not reported: see {file}; "
            f"the first is {red[0].contender}, {red[0].dtype}, {red[0].direction}"
        )
