"""Measure attention and models on this machine's GPU, in bfloat16, in under 8 minutes: ``make bench-gpu``.

Needs torch, triton, timm and matplotlib, and this repository; nothing has to be installed. Writes
``benchmarks/<name of the GPU>.json`` and two pictures beside it. What the time does not suffice for is listed as left out.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flatten_transformer  # noqa: F401  # registers the models
from flatten_transformer.benchmark import contenders, model, op
from flatten_transformer.benchmark.growth import growth
from flatten_transformer.benchmark.machine import Header, choose_device, describe
from flatten_transformer.benchmark.picture import draw
from flatten_transformer.benchmark.race import DIRECTIONS, Limits, Plan, make_cases
from flatten_transformer.benchmark.report import Point, Report, write_report

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
    device, dtype = choose_device(arguments.device), getattr(torch, arguments.dtype)
    header = describe(device)
    start_s, whole_s = time.monotonic(), 60 * arguments.minutes

    points = []
    # softmax that takes longer at one size would take minutes at the next
    limits = Limits(arguments.budget_s, call_s=0.1, deadline_s=start_s + SHARE_OF_OP * whole_s)
    shapes = op.sweep_shapes(arguments.tokens, 64 * arguments.heads, arguments.heads, arguments.tokens_per_batch)
    cases = make_cases(shapes, [dtype], DIRECTIONS)
    cases.sort(key=lambda case: case.subject.tokens)  # if the time runs out, it is the longest that are missing
    plan = Plan(
        cases, device, limits, ATTENTIONS, compiled=not arguments.eager, copy_gb_per_s=float(header["copy_gb_per_s"] or 0)
    )
    for race in op.measure(plan):
        points += race
        show(race)
    write(header, points, arguments.folder)  # so that nothing is lost if a model fails

    limits = limits._replace(call_s=2.0, deadline_s=start_s + 0.92 * whole_s)
    for size_px in arguments.sizes_px:
        batch = max(1, round(arguments.batch * (224 / size_px) ** 2))  # as many pixels at every size
        model_cases = model.make_cases(arguments.models, [size_px], batch, [dtype], DIRECTIONS)
        for race in model.measure(Plan(model_cases, device, limits, MODEL_CONTENDERS, graphed=device.type == "cuda")):
            points += race
            show(race)
        write(header, points, arguments.folder)
    print(f"{time.monotonic() - start_s:.0f} s")


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
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks")
    return parser.parse_args()


def show(race: list[Point]) -> None:
    """Print a line for each contender of one race."""
    first = race[0]
    size = first.shape.get("tokens") or first.shape["image_px"]
    print(f"\n{first.subject} {size}, batch {first.shape['batch']}, {first.dtype}, {first.direction}")
    for point in race:
        ratios = ", ".join(f"{ratio.median:.2f} of {name}" for name, ratio in point.time_ratios.items())
        floor = "" if not point.floor_us or not point.median_us else f", {point.floor_us / point.median_us:.0%} of the floor"
        result = point.reason or f"{point.median_us:10.1f} µs {point.peak_mib:9.1f} MiB  time {ratios}{floor}"
        print(f"  {point.contender:20} {result}", flush=True)


def write(header: Header, points: list[Point], folder: Path) -> None:
    """Write the report and its pictures, named after the device."""
    name = re.sub(r"[^a-z0-9]+", "-", str(header["device_name"]).lower()).strip("-")
    attention = [point for point in points if "tokens" in point.shape]
    models = [point for point in points if "image_px" in point.shape]
    report = Report(header, points, growth=growth(attention))
    write_report(folder / f"{name}.json", report)
    if attention:
        draw(Report(header, attention), folder / f"{name}.png")
    if models:
        draw(Report(header, models), folder / f"{name}-models.png")
    for one in report.growth:
        memory = "" if one.memory_exponent is None else f", memory {one.memory_exponent:.3f}"
        print(f"growth of {one.contender}, {one.direction}: time {one.time_exponent:.3f}{memory}")
    for point in report.failed_checks():
        print(f"{point.contender}: {point.reason}")


if __name__ == "__main__":
    main()
