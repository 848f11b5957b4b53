"""Which attention learns Fashion-MNIST best: the paper's ladder, powers and competitors, one recipe for all, several seeds.

    python benchmarks/study/run.py                     # everything that is not there yet, and the table and the picture
    python benchmarks/study/run.py --seeds '[0]'       # for example beside another process with --seeds '[1]'
    python benchmarks/study/run.py --seeds '[]'        # the table and the picture alone
    python benchmarks/study/run.py --speed_s 120       # what a training step of each takes, on a machine that does nothing else

A run that is killed goes on where it was; each result is a file in benchmarks/study/results/, which another start leaves alone.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import yaml  # type: ignore[import-untyped]  # ships no annotations
from jsonargparse import auto_cli

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.studies import apart_by_chance, check_names, pooled, results_in, run_missing, spread_out
from flatten_transformer.benchmark.machine import describe
from flatten_transformer.benchmark.model import make_run
from flatten_transformer.benchmark.timing import Spread, interleave, wall_clock
from flatten_transformer.models.cost import count_macs, count_parameters
from flatten_transformer.training.cli import train
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.recipes import find_recipe
from flatten_transformer.utils.atomic_file import write_atomically, write_figure
from flatten_transformer.utils.picture_style import LINES, PALE, add_grid, new_figure, styled
from flatten_transformer.utils.printable import lasting
from flatten_transformer.utils.progress import note
from flatten_transformer.utils.stopping import run_script

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECIPE = "fashion_mnist/study"
SPEEDS = HERE / "speed.json"
_BARE = {"rank_restoration": False, "key_encoding": False, "temperature": False}
_RESTORED = {"key_encoding": False, "temperature": False}
COMPETITORS = ("elu", "hydra", "efficient", "angular", "enhanced", "agent", "polaformer", "inline")
VARIANTS: dict[str, dict[str, Any]] = {  # what of the model differs, by the name in the table
    # the ladder of the paper
    "softmax": {"attn_types": "S"},
    "relu": {"attention": "relu"},
    "relu + focusing": {"attention_args": _BARE},
    "relu + focusing + rank restoration": {"attention_args": _RESTORED},
    "focused": {},
    # the power, which is 3 above
    "focused, p = 2": {"focusing_factor": 2},
    "focused, p = 4": {"focusing_factor": 4},
    "focused, p = 8": {"focusing_factor": 8},
    # what explains a difference: softmax with the same convolution
    "softmax + rank restoration": {"attention": "softmax", "attention_args": {"rank_restoration": True}},
    # the competitors
    **{name: {"attention": name} for name in COMPETITORS},
}


def main(seeds: list[int] = [0, 1, 2], only: list[str] = list(VARIANTS), speed_s: float = 0) -> None:  # noqa: B006
    """Train what is not there yet, seed after seed, then write the table and draw the picture.

    Args:
        seeds: Of the runs.
        only: Names of variants.
        speed_s: Seconds to spend on measuring the speed of all, in turn, instead of training.
    """
    check_names(only, list(VARIANTS))
    if speed_s:
        note(f"timing a step of each of {len(VARIANTS)} in turn, for {lasting(speed_s)}")
        write_atomically(SPEEDS, json.dumps(measure_speeds(speed_s), indent=1).encode())
    else:
        run_missing([(seed, name) for seed in seeds for name in only], HERE / "results", train_one, origin)
    summary = summarise(
        results_in(HERE / "results"), json.loads(SPEEDS.read_text())["images_per_second"] if SPEEDS.exists() else {}
    )
    write_atomically(HERE / "README.md", page(summary).encode())
    draw(summary, HERE / "study.png")


def origin(name: str) -> dict[str, Any]:
    """Return what the results of a variant depend on besides seed and code."""
    return {"recipe": yaml.safe_load(find_recipe(RECIPE).read_text("utf-8")), "options": VARIANTS[name]}


def command(name: str, seed: int) -> list[str]:
    """Return the arguments by which ``flatten fit`` trains one variant with one seed, or goes on with it."""
    options = {"attn_types": "L", **VARIANTS[name]}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
    folder = Path("runs/study") / f"{name.replace(' ', '_')}-{seed}"
    return [
        *("--config", RECIPE, *(f"--model.model_args.{key}={text}" for key, text in texts.items())),
        *("--seed_everything", str(seed), "--ckpt_path", "last"),
        *("--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"),
    ]


def train_one(name: str, seed: int) -> dict[str, Any]:
    """Train one variant with one seed, and test it."""
    start = time.perf_counter()
    cli = train("fit", command(name, seed))
    seconds = time.perf_counter() - start
    with without_lightning_noise():
        tested = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)[0]
    model, size = cli.model.final_model, cli.datamodule.preprocessing
    return {
        "variant": name,
        "seed": seed,
        "test_accuracy": tested["test/accuracy"],
        "parameters": count_parameters(model),
        "macs": count_macs(model, (size.in_chans, size.img_size, size.img_size)),
        "training_s": seconds,
        "header": describe(torch.device("cpu")),
    }


def measure_speeds(budget_s: float) -> dict[str, Any]:
    """Time a training step of each variant, without the optimizer, round after round; return images a second."""
    recipe = yaml.safe_load(find_recipe(RECIPE).read_text("utf-8"))
    images = torch.randn(2, recipe["data"]["batch_size"], 3, *[recipe["model"]["model_args"]["img_size"]] * 2)
    runs = {}
    for name, options in VARIANTS.items():
        model = timm.create_model(recipe["model"]["name"], **{**recipe["model"]["model_args"], **options}).train()
        call = torch.autocast("cpu", torch.bfloat16)(model)  # as the recipe's precision
        runs[name] = make_run(model, call, images, "forward+backward")
    rounds = interleave(runs, wall_clock, budget_s=budget_s)
    medians_us = {name: Spread.of([times[name] for times in rounds]).median for name in runs}
    speeds = {name: 1e6 * images.shape[1] / median for name, median in medians_us.items()}
    return {"images_per_second": speeds, "rounds": len(rounds), "header": describe(torch.device("cpu"))}


def summarise(results: Sequence[Mapping[str, Any]], speeds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return the figures of each variant, in the order of the table: percent, mean and deviation over seeds."""
    summary = {}
    for name in VARIANTS:
        rows = [row for row in results if row["variant"] == name]
        if rows:
            accuracies = [100 * row["test_accuracy"] for row in rows]
            summary[name] = {
                "mean": statistics.fmean(accuracies),
                "deviation": statistics.stdev(accuracies) if len(rows) > 1 else math.nan,
                "seeds": len(rows),
                "accuracies": accuracies,
                "parameters": rows[0]["parameters"],
                "mmacs": rows[0]["macs"] / 1e6,
                "images_per_second": speeds.get(name, math.nan),
            }
    return summary


def page(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page with the table."""
    lines = [
        "# Study: which attention learns Fashion-MNIST best",
        "",
        f"One small DeiT (14 × 14 tokens), one recipe for all (`{RECIPE}`): `python benchmarks/study/run.py`. Each run is a",
        "file in `results/`. The script writes this page. Speed is that of training steps without the optimizer, of all in turn",
        "(`--speed_s`; machine and rounds in `speed.json`).",
        "",
        "| attention | test accuracy, mean ± deviation | seeds | parameters | MMACs | training images a second |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in summary.items():
        spread = "" if math.isnan(row["deviation"]) else f" ± {row['deviation']:.2f}"
        speed = "" if math.isnan(row["images_per_second"]) else f"{row['images_per_second']:.0f}"
        lines.append(
            f"| {name} | {row['mean']:.2f}{spread} % | {row['seeds']:.0f} | {row['parameters']:,.0f} | {row['mmacs']:.2f} | "
            f"{speed} |"
        )
    return "\n".join([*lines, "", *chance(summary), "![Accuracy of each attention against its training time](study.png)", ""])


def chance(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return in words how far two means may be apart by chance, from the deviation over seeds that all variants share."""
    deviation, freedom = pooled([row["accuracies"] for row in summary.values()])
    if not freedom:
        return []
    seeds = min(len(row["accuracies"]) for row in summary.values() if len(row["accuracies"]) > 1)
    apart = apart_by_chance(deviation, freedom, seeds)
    return [
        f"Seeds differ by {deviation:.2f} points (the deviation of all variants, pooled, {freedom} degrees of freedom). Two",
        f"given means of {seeds} seeds less than {apart:.2f} points apart may be so by chance (95 %, two-sided t-test).",
        "",
    ]


def draw(summary: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy against the time for a thousand training images into a PNG file."""
    figure = new_figure(10, 6.5)
    with styled():
        _draw(figure.subplots(), summary)
        write_figure(path, figure)


def _draw(axis: Axes, summary: Mapping[str, Mapping[str, Any]]) -> None:
    measured = {name: row for name, row in summary.items() if not math.isnan(row["images_per_second"])}
    points = {name: (1000 / row["images_per_second"], row["mean"]) for name, row in measured.items()}
    low, high = (limit(y for _, y in points.values()) for limit in (min, max))
    heights = dict(zip(points, spread_out([y for _, y in points.values()], max(high - low, 0.1) / 22), strict=True))
    column = max(x for x, _ in points.values()) * 1.06
    for name, (x, y) in points.items():
        bar = None if math.isnan(summary[name]["deviation"]) else summary[name]["deviation"]
        shape, color = {"softmax": ("s", LINES[1]), "focused": ("D", LINES[0])}.get(name, ("o", PALE))
        axis.errorbar(x, y, yerr=bar, fmt=shape, color=color, capsize=3)
        line = {"arrowstyle": "-", "color": color, "alpha": 0.35, "linewidth": 0.7}
        axis.annotate(name, (x, y), (column, heights[name]), arrowprops=line, color=color, va="center", fontsize=9)
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 < tick < column])
    axis.set_xlim(right=column * 1.32)
    axis.set_ylim(top=max(high, *heights.values()) + (high - low) / 12)
    axis.set(xlabel="seconds for 1,000 training images", ylabel="test accuracy, %", title="Fashion-MNIST, one recipe for all")
    add_grid(axis)


if __name__ == "__main__":
    sys.exit(run_script(partial(auto_cli, main)))
