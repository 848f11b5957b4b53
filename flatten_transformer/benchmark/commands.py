"""`flatten benchmark op` and `flatten benchmark model`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from flatten_transformer.benchmark import arguments, growth, picture
from flatten_transformer.benchmark import contenders as attentions
from flatten_transformer.benchmark import model as _models
from flatten_transformer.benchmark import op as operators
from flatten_transformer.benchmark.machine import choose_device, describe
from flatten_transformer.benchmark.race import DIRECTIONS, Limits
from flatten_transformer.benchmark.report import Point, Report, write_report

_QUICK_BUDGET_S = 0.5
_QUICK_TOKENS = (49, 196, 784, 3136)


def op(
    shapes: str | None = None,
    tokens: str | None = None,
    channels: int = 192,
    heads: int = 3,
    tokens_per_batch: int = 16384,
    dtypes: str | None = None,
    directions: str = ",".join(DIRECTIONS),
    contenders: str = "all",
    compiled: bool | None = None,
    device: str = "auto",
    budget_s: float = 5.0,
    limit_s: float = 5.0,
    quick: bool = False,
    folder: Path = Path("runs/benchmark"),
) -> None:
    """Race focused linear attention against its released form, ReLU linear and softmax attention, side by side.

    Args:
        shapes: BATCHxHEIGHTxWIDTHxCHANNELSxHEADS, separated by commas; by default four that the paper's models have.
        tokens: A sweep instead of shapes: tokens N of one sample, separated by commas; "all" is 49 to 1,048,576.
        channels: Of a sweep, over all heads.
        heads: Of a sweep.
        tokens_per_batch: Of a sweep: so many tokens share a batch, one sample at least; the picture is of one sample.
        dtypes: Some of float32, bfloat16, float16, float64; by default float32 on the CPU and bfloat16 on a GPU.
        directions: Some of forward, forward+backward.
        contenders: Some of ours, ours-portable, ours-cpp, ours-triton, released, released-compiled,
            ours-portable-compiled, relu-linear, softmax-math, softmax-efficient, softmax-flash, softmax-cudnn; or all.
        compiled: Let torch.compile take part, which needs about a minute a point to start; by default where not quick.
        device: cpu, cuda, or auto: a GPU where there is one.
        budget_s: Seconds of timing at each point, for all contenders together.
        limit_s: A contender whose single call takes more seconds is left out, at larger sizes too.
        quick: Half a second a point and a short sweep: to see it run, not to quote.
        folder: Where op.json and op.png go.
    """
    arguments.check_positive(budget_s=budget_s, limit_s=limit_s, tokens_per_batch=tokens_per_batch)
    compiled = not quick if compiled is None else compiled
    wanted = _choose(contenders, attentions.names(compiled=compiled))
    if tokens is not None and shapes is not None:
        raise ValueError(
            "shapes and tokens exclude each other: give shapes, or the tokens of a sweep with its channels and heads"
        )
    chosen = _sweep(tokens, channels, heads, tokens_per_batch, quick) if tokens else _shapes(shapes)
    where = choose_device(device)
    cases = operators.make_cases(chosen, _dtypes(dtypes, where), arguments.words(directions, "directions", DIRECTIONS))

    header = describe(where)
    plan = operators.Plan(cases, where, _limits(budget_s, limit_s, quick), wanted, compiled, float(header["copy_gb_per_s"] or 0))
    points = _collect(operators.measure(plan), len(cases))
    if tokens:
        report = Report(header, points, growth=growth.growth(points))
    else:
        report = Report(header, points, means=growth.means(points))
    _finish(report, folder / "op.json")


def model(
    models: str = ",".join(_models.MODELS),
    sizes_px: str = "224",
    batch: int = 8,
    dtypes: str | None = None,
    directions: str = ",".join(DIRECTIONS),
    contenders: str = "all",
    compiled: bool = False,
    device: str = "auto",
    budget_s: float = 30.0,
    limit_s: float = 30.0,
    quick: bool = False,
    folder: Path = Path("runs/benchmark"),
) -> None:
    """Race FLatten models against their softmax namesakes and against themselves on the released form, side by side.

    Args:
        models: Names from `flatten models`, separated by commas.
        sizes_px: Sides of the images, multiples of 32 separated by commas, such as 224,384,512,1024.
        batch: Images in a batch.
        dtypes: Some of float32, bfloat16, float16, float64, of images and weights; by default float32 on the CPU and
            bfloat16 on a GPU.
        directions: Some of forward (inference) and forward+backward (a training step without the optimiser).
        contenders: Some of ours, released, softmax, and with
            `--compiled true` ours-compiled and so on; or all.
        compiled: Race each under torch.compile too, which needs a minute or more a point to start.
        device: cpu, cuda, or auto: a GPU where there is one.
        budget_s: Seconds of timing at each point, for all contenders together.
        limit_s: A contender whose single call takes more seconds is left out.
        quick: Half a second a point: to see it run, not to quote.
        folder: Where model.json and model.png go.
    """
    arguments.check_positive(budget_s=budget_s, limit_s=limit_s, batch=batch)
    wanted = _choose(contenders, _models.contender_names(compiled=compiled))
    where = choose_device(device)
    cases = _models.make_cases(
        arguments.words(models, "models", _models.NAMESAKES),
        arguments.whole_numbers(sizes_px, "sizes_px"),
        _dtypes(dtypes, where),
        arguments.words(directions, "directions", DIRECTIONS),
    )
    header = describe(where)
    plan = _models.Plan(cases, where, batch, _limits(budget_s, limit_s, quick), wanted, compiled)
    _finish(Report(header, _collect(_models.measure(plan), len(cases))), folder / "model.json")


def _choose(contenders: str, known: Sequence[str]) -> list[str] | None:
    return None if contenders == "all" else arguments.words(contenders, "contenders", known)


def _shapes(shapes: str | None) -> list[attentions.Shape]:
    return list(operators.SHAPES) if shapes is None else arguments.shapes(shapes)


def _sweep(tokens: str, channels: int, heads: int, tokens_per_batch: int, quick: bool) -> list[attentions.Shape]:
    arguments.check_heads(channels, heads)
    every = _QUICK_TOKENS if quick else operators.TOKENS
    sizes = every if tokens == "all" else arguments.whole_numbers(tokens, "tokens")
    return operators.sweep_shapes(sizes, channels, heads, tokens_per_batch)


def _dtypes(dtypes: str | None, device: torch.device) -> list[torch.dtype]:
    default = "bfloat16" if device.type == "cuda" else "float32"
    return [arguments.DTYPES[name] for name in arguments.words(dtypes or default, "dtypes", arguments.DTYPES)]


def _limits(budget_s: float, limit_s: float, quick: bool) -> Limits:
    return Limits(min(budget_s, _QUICK_BUDGET_S) if quick else budget_s, limit_s)


def _collect(races: Iterable[Sequence[Point]], count: int) -> list[Point]:
    """Run all races behind a progress bar."""
    from rich.progress import track

    return [point for points in track(races, "racing", total=count, transient=True) for point in points]


def _finish(report: Report, file: Path) -> None:
    """Write and show a report; a contender of ours that computes something else is an error, after all is written."""
    from rich.console import Console

    from flatten_transformer.benchmark.table import tables
    from flatten_transformer.terminal import say

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
