"""Measure attention and models on this machine's GPU, in bfloat16, in under 8 minutes: ``make bench-gpu``.

Needs torch, triton, timm and matplotlib, and this repository; nothing has to be installed. Writes
``benchmarks/<name of the GPU>.json`` after each race, and two pictures beside it at the end. What the time does not suffice for
is listed as left out. Another start goes on after the finished races; results of other options, machines or code are left alone,
and new ones get a file of their own.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flatten_transformer  # noqa: F401  # registers the models
from flatten_transformer.benchmark import contenders, model, op
from flatten_transformer.benchmark.contenders import Shape
from flatten_transformer.benchmark.growth import growth
from flatten_transformer.benchmark.kept import open_kept
from flatten_transformer.benchmark.machine import Header, choose_device, describe
from flatten_transformer.benchmark.output import run_races
from flatten_transformer.benchmark.picture import draw
from flatten_transformer.benchmark.race import DIRECTIONS, Case, Limits, Plan, make_cases
from flatten_transformer.benchmark.report import Point, Report, race_title
from flatten_transformer.utils.progress import above_bars
from flatten_transformer.utils.stopping import run_script

MODELS = ("flatten_swin_tiny_patch4_224", "flatten_pvt_tiny", "flatten_pvt_small", "flatten_deit_tiny_patch16_224")
TOKENS = (196, 784, 3136, 4096, 16384, 262144, 1048576)
SHARE_OF_OP = 0.5  # of the time: the rest is for the models
# "ours" is "ours-triton" here; math writes the scores, and the portable backend under torch.compile costs more than it tells.
LEFT_OUT = ("ours-portable-compiled", "ours-triton", "ours-cpp", "softmax-math")
ATTENTIONS = [name for name in contenders.names() if name not in LEFT_OUT]
# CUDA graphs tell the GPU's own time; eager models of few images wait for Python.
MODEL_CONTENDERS = ("ours", "released", "softmax", "ours-graphed", "softmax-graphed")


def main() -> None:
    """Measure, show and write."""
    arguments = read_arguments()
    device = choose_device(arguments.device)
    header = describe(device)
    start_s = time.monotonic()
    options = {name: value for name, value in vars(arguments).items() if name not in ("folder", "resume")}
    cases = attention_cases(arguments)
    races = [model_cases(arguments, size_px) for size_px in arguments.sizes_px]
    file = arguments.folder / f"{re.sub(r'[^a-z0-9]+', '-', str(header['device_name']).lower()).strip('-')}.json"
    total = len(cases) + sum(map(len, races))
    kept = open_kept(file, header, options, total, "races", resume=arguments.resume == "true")

    # softmax that takes longer at one size would take minutes at the next
    limits = Limits(arguments.budget_s, call_s=0.1, deadline_s=start_s + SHARE_OF_OP * 60 * arguments.minutes)
    copy_gb_per_s = float(kept.header["copy_gb_per_s"] or 0)
    plan = Plan(cases, device, limits, ATTENTIONS, compiled=not arguments.eager, copy_gb_per_s=copy_gb_per_s)
    limits = limits._replace(call_s=2.0, deadline_s=start_s + 0.92 * 60 * arguments.minutes)
    graphed = device.type == "cuda"
    plans = [Plan(some, device, limits, MODEL_CONTENDERS, graphed=graphed) for some in races]
    report = run_races(kept, [(plan, op.measure), *((plan, model.measure) for plan in plans)], partial(judge, kept.header), show)
    finish(report, kept.path)
    print(f"{time.monotonic() - start_s:.0f} s")


def attention_cases(arguments: argparse.Namespace) -> list[Case[Shape]]:
    """Return the races of attentions; if the time runs out, it is the longest that are missing."""
    shapes = op.sweep_shapes(arguments.tokens, 64 * arguments.heads, arguments.heads, arguments.tokens_per_batch)
    return sorted(make_cases(shapes, [getattr(torch, arguments.dtype)], DIRECTIONS), key=lambda case: case.subject.tokens)


def model_cases(arguments: argparse.Namespace, size_px: int) -> list[Case[model.Images]]:
    """Return the races of models on images of one size, with as many pixels in a batch at every size."""
    batch = max(1, round(arguments.batch * (224 / size_px) ** 2))
    return model.make_cases(arguments.models, [size_px], batch, [getattr(torch, arguments.dtype)], DIRECTIONS)


def judge(header: Header, points: list[Point]) -> Report:
    """Return the report of some points."""
    return Report(header, points, growth=growth(point for point in points if "tokens" in point.shape))


def read_arguments() -> argparse.Namespace:
    """Return the options; the defaults are what ``make bench-gpu`` measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=[str(dtype).removeprefix("torch.") for dtype in op.TOLERANCES])
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--budget_s", type=float, default=1.5)
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    parser.add_argument("--tokens_per_batch", type=int, default=65536)
    parser.add_argument("--heads", type=int, default=4, help="of 64 channels each")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--sizes_px", type=int, nargs="*", default=(224, 512))
    parser.add_argument("--batch", type=int, default=256, help="at 224 pixels; larger images share a batch of as many pixels")
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    parser.add_argument("--resume", choices=("true", "false"), default="true", help="false begins anew, in another file")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks")
    return parser.parse_args()


def show(race: list[Point]) -> None:
    """Print a line for each contender of one race."""
    with above_bars():
        print(f"\n{race_title(race[0])}")
        for point in race:
            ratios = ", ".join(f"{ratio.median:.2f} of {name}" for name, ratio in point.time_ratios.items())
            floor = "" if not point.floor_us or not point.median_us else f", {point.floor_us / point.median_us:.0%} of the floor"
            result = point.reason or f"{point.median_us:10.1f} µs {point.peak_mib:9.1f} MiB  time {ratios}{floor}"
            print(f"  {point.contender:20} {result}", flush=True)


def finish(report: Report, file: Path) -> None:
    """Draw the pictures, and print what grows how and which checks are red."""
    attention = [point for point in report.points if "tokens" in point.shape]
    models = [point for point in report.points if "image_px" in point.shape]
    if attention:
        draw(Report(report.header, attention), file.with_suffix(".png"))
    if models:
        draw(Report(report.header, models), file.with_name(f"{file.stem}-models.png"))
    for one in report.growth:
        memory = "" if one.memory_exponent is None else f", memory {one.memory_exponent:.3f}"
        print(f"growth of {one.contender}, {one.direction}: time {one.time_exponent:.3f}{memory}")
    for point in report.failed_checks():
        print(f"{point.contender}: {point.reason}")


if __name__ == "__main__":
    sys.exit(run_script(main))
