"""`flatten benchmark op`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flatten_transformer.benchmark import arguments
from flatten_transformer.benchmark.contenders import Shape, names
from flatten_transformer.benchmark.growth import growth, means
from flatten_transformer.benchmark.kept import open_kept
from flatten_transformer.benchmark.machine import Header, choose_device, describe
from flatten_transformer.benchmark.op import SHAPES, TOKENS, measure, sweep_shapes
from flatten_transformer.benchmark.output import FOLDER, finish, run_races, show_race
from flatten_transformer.benchmark.race import DIRECTIONS, Plan, make_cases
from flatten_transformer.benchmark.report import Point, Report

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
    resume: bool = True,
    folder: Path = FOLDER,
) -> None:
    """Race focused linear attention against its released form, ReLU linear and softmax attention, side by side.

    Args:
        shapes: BATCHxHEIGHTxWIDTHxCHANNELSxHEADS, separated by commas; by default four of the paper's models.
        tokens: A sweep instead of shapes: tokens N of one sample, separated by commas; "all" is 49 to 1,048,576.
        channels: Channels of a sweep, over all heads.
        heads: Heads of a sweep.
        tokens_per_batch: Tokens per batch of a sweep, at least one sample; plots are per sample.
        dtypes: Some of float32, bfloat16, float16, float64; by default float32 on the CPU and bfloat16 on a GPU.
        directions: Some of forward, forward+backward.
        contenders: Some of ours, ours-portable, ours-cpp, ours-triton, released, released-compiled,
            ours-portable-compiled, relu-linear, softmax-math, softmax-efficient, softmax-flash, softmax-cudnn; or all.
        compiled: Include torch.compile, which takes about a minute per point to start; by default unless quick.
        device: cpu, cuda, or auto: a GPU if there is one.
        budget_s: Seconds of timing per point, for all contenders together.
        limit_s: Contenders with slower calls, in seconds, are left out, at larger sizes too.
        quick: Half a second per point and a short sweep: to see it run, not to quote.
        resume: Go on after the races that an earlier start with the same options, on the same machine and code, has finished;
            false begins anew, in another file.
        folder: Folder of op.json, rewritten after each race, and op.png; op_2.json and so on if it holds other results.
    """
    options = {name: value for name, value in locals().items() if name not in ("resume", "folder")}
    arguments.check_positive(budget_s=budget_s, limit_s=limit_s, tokens_per_batch=tokens_per_batch)
    compiled = not quick if compiled is None else compiled
    selected = arguments.words_or_all(contenders, "contenders", names(compiled=compiled))
    if tokens is not None and shapes is not None:
        raise ValueError(
            "shapes and tokens exclude each other: give shapes, or the tokens of a sweep with its channels and heads"
        )
    if tokens:
        chosen = _sweep(tokens, channels, heads, tokens_per_batch, quick)
    else:
        chosen = list(SHAPES) if shapes is None else arguments.shapes(shapes)
    where = choose_device(device)
    cases = make_cases(chosen, arguments.parse_dtypes(dtypes, where), arguments.words(directions, "directions", DIRECTIONS))

    kept = open_kept(folder / "op.json", describe(where), options, len(cases), "races", resume=resume)
    copy_gb_per_s = float(kept.header["copy_gb_per_s"] or 0)
    plan = Plan(cases, where, arguments.limits(budget_s, limit_s, quick), selected, compiled, copy_gb_per_s=copy_gb_per_s)
    judge = partial(_report_sweep if tokens else _report_shapes, kept.header)
    finish(run_races(kept, [(plan, measure)], judge, show_race), kept.path)


def _report_sweep(header: Header, points: Sequence[Point]) -> Report:
    return Report(header, points, growth(points))


def _report_shapes(header: Header, points: Sequence[Point]) -> Report:
    return Report(header, points, means=means(points))


def _sweep(tokens: str, channels: int, heads: int, tokens_per_batch: int, quick: bool) -> list[Shape]:
    arguments.check_heads(channels, heads)
    every = _QUICK_TOKENS if quick else TOKENS
    sizes = every if tokens == "all" else arguments.integers(tokens, "tokens")
    return sweep_shapes(sizes, channels, heads, tokens_per_batch)
