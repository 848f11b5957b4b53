"""Run races behind a progress bar; write and print the report."""

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
    """Write and print a report, then raise FloatingPointError if ours differs from the released form."""
    from rich.console import Console

    from flatten_transformer.benchmark.table import tables
    from flatten_transformer.utils.terminal import say

    write_report(file, report)
    picture.draw(report, file.with_suffix(".png"))
    console = Console() if sys.stdout.isatty() else Console(width=110)
    console.print(*tables(report), sep="\n")
    say(f"Report: {file}, picture: {file.with_suffix('.png')}")
    if failed := report.failed_checks():
        raise FloatingPointError(
            f"{len(failed)} results of ours differ from the released form, so their speed is not reported: see {file}; "
            f"the first is {failed[0].contender}, {failed[0].dtype}, {failed[0].direction}"
        )
