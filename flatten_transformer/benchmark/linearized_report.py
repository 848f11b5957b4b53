"""Report of a model that was turned linear: tables, numbers as JSON, pictures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from flatten_transformer.benchmark.linearized import Judgement
from flatten_transformer.benchmark.linearized_picture import draw_errors, draw_times
from flatten_transformer.benchmark.linearized_times import STUDENT, TEACHER, crossing
from flatten_transformer.benchmark.machine import Header
from flatten_transformer.benchmark.report import Point
from flatten_transformer.benchmark.table import error_label, marked, new_table, share_label, time_label
from flatten_transformer.utils.atomic_file import write_atomically

_KEPT = "softmax"  # what stands in the place of an error


@dataclass(frozen=True)
class Linearized:
    """What there is to say of a linearized model.

    Args:
        header: Machine and versions, of :func:`flatten_transformer.benchmark.machine.describe`.
        model: Name of the model.
        attentions: All attentions of the teacher, of :func:`flatten_transformer.linearize.softmax_attentions`.
        stages: How near the student is to the teacher, by stage in order, the untrained student first.
        split: What images they were judged on: ``"validation"`` images have chosen the epochs, ``"test"`` images nothing.
        times: Of :func:`~flatten_transformer.benchmark.linearized_times.measure_times`, for the last student; may be empty.
    """

    header: Header
    model: str
    attentions: Sequence[str]
    stages: Mapping[str, Judgement]
    split: str = "validation"
    times: Sequence[Point] = ()


def write(report: Linearized, folder: Path) -> None:
    """Write ``report.json``, ``report.md``, ``errors.png`` and, with times, ``times.png``, each file atomically.

    Args:
        report: The report.
        folder: Made if it is missing.
    """
    content = json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / "report.json", content.encode())
    pictures = ["errors.png"]
    draw_errors(folder / "errors.png", report.model, report.attentions, report.stages)
    if crossing(report.times).ratios:
        draw_times(folder / "times.png", report.model, report.header, report.times)
        pictures.append("times.png")
    write_atomically(folder / "report.md", to_markdown(report, pictures).encode())


def to_json(report: Linearized) -> dict[str, Any]:
    """Return a report as JSON values; a number that is not finite is None."""
    times = [{**asdict(p), "time_ratios": {name: ratio._asdict() for name, ratio in p.time_ratios.items()}} for p in report.times]
    turn = crossing(report.times)
    content = {
        "header": report.header,
        "model": report.model,
        "attentions": list(report.attentions),
        "split": report.split,
        "stages": {name: asdict(judged) for name, judged in report.stages.items()},
        "times": times,
        "faster_from_px": turn.faster_from_px,
        "crossing_px": turn.crossing_px,
    }
    return {name: _finite(value) for name, value in content.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tables(report: Linearized) -> list[Table]:
    """Return the tables of blocks, of stages and, if there are some, of times, for a terminal of rich."""
    return [_blocks_table(report), _stages_table(report), *([_times_table(report.times)] if report.times else [])]


def to_markdown(report: Linearized, pictures: Sequence[str]) -> str:
    """Return a report as a Markdown file beside its pictures."""
    parts = [f"# {report.model}, linearized"]
    for table in tables(report):
        title, caption = table.title, str(table.caption or "")
        table.title = table.caption = None
        table.box = box.MARKDOWN
        console = Console(file=io.StringIO(), record=True, width=1000, color_system=None)
        console.print(table)
        parts += [f"**{title}**", console.export_text().strip(), *caption.splitlines()]
    return "\n\n".join([*parts, *(f"![{picture}]({picture})" for picture in pictures)]) + "\n"


def _blocks_table(report: Linearized) -> Table:
    table = new_table("error of each attention on its teacher's own inputs, relative", "block", *report.stages)
    width = len(str(len(report.attentions) - 1))
    for index, name in enumerate(report.attentions):
        errors = [judged.blocks.get(name) for judged in report.stages.values()]
        table.add_row(f"{index:>{width}}  {name}", *(_KEPT if error is None else error_label(error) for error in errors))
    return table


def _stages_table(report: Linearized) -> Table:
    judged = list(report.stages.values())
    table = new_table("student and teacher", "stage", "agree", "accuracy", "error of the features")
    for name, one in report.stages.items():
        error = "" if one.features is None else error_label(one.features)
        table.add_row(name, *map(share_label, (one.agreement, one.accuracy)), error)
    if judged and judged[-1].teacher_accuracy is not None:
        table.add_row(TEACHER, "", share_label(judged[-1].teacher_accuracy), "")
    table.caption = f"{judged[-1].images:,} {report.split} images" if judged else None
    return table


def _times_table(points: Sequence[Point]) -> Table:
    first = points[0]
    title = f"time of an image, {first.dtype}, batch {first.shape['batch']}"
    table = new_table(title, "size", TEACHER, STUDENT, "student ÷ teacher")
    for size_px in dict.fromkeys(point.shape["image_px"] for point in points):
        pair = [next(p for p in points if (p.contender, p.shape["image_px"]) == (who, size_px)) for who in (TEACHER, STUDENT)]
        times = [time_label(time_us) if (time_us := p.per_sample(p.median_us)) is not None else "" for p in pair]
        ratio = pair[1].time_ratios.get(TEACHER)
        text = "" if ratio is None else f"{ratio.median:.2f} ({ratio.q1:.2f}-{ratio.q3:.2f})"
        table.add_row(f"{size_px:,} px", *times, marked(text, ratio is not None and ratio.median > 1))
    reasons = [f"Not timed: {p.contender} at {p.shape['image_px']:,} px: {p.reason}." for p in points if p.reason]
    table.caption = "\n".join([str(crossing(points)), *reasons])
    return table
