"""Which attention learns Fashion-MNIST best: the paper's ladder, powers and competitors, one recipe for all, several seeds.

    python benchmarks/study/run.py                     # everything that is not there yet, and the table and the picture
    python benchmarks/study/run.py --seeds 0           # for example beside another process with --seeds 1
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
from scipy import stats

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

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
from flatten_transformer.utils.progress import note, track
from flatten_transformer.utils.stopping import run_script, telling_what_is_kept

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
    unknown = sorted(set(only) - set(VARIANTS))
    if unknown:
        raise SystemExit(f"no variant {unknown[0]!r}: choose some of {', '.join(VARIANTS)}")
    if speed_s:
        note(f"timing a step of each of {len(VARIANTS)} in turn, for {lasting(speed_s)}")
        write_atomically(SPEEDS, json.dumps(measure_speeds(speed_s), indent=1).encode())
    else:
        train_missing([(seed, name) for seed in seeds for name in only])
    results = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    summary = summarise(results, json.loads(SPEEDS.read_text())["images_per_second"] if SPEEDS.exists() else {})
    write_atomically(HERE / "README.md", page(summary).encode())
    draw(summary, HERE / "study.png")


def train_missing(runs: Sequence[tuple[int, str]]) -> None:
    """Train and test what has no result yet, and write each result.

    Args:
        runs: Seed and name of a variant.
    """
    there = {run: json.loads(file.read_text()) for run in runs if (file := file_of(*run)).exists()}
    for run, result in there.items():
        check_origin(file_of(*run), result, run[1])
    if there:
        commits = ", ".join(sorted({str(result["header"]["commit"]) for result in there.values()}))
        note(f"{len(there)} of {len(runs)} results are in {HERE / 'results'} already, of commits {commits}: going on")
    left = [run for run in runs if run not in there]
    with (
        telling_what_is_kept(
            lambda: "every finished run is in results/; the same command goes on, with the run at hand from its last checkpoint"
        ),
        track(left, lambda run: f"{run[1]}, seed {run[0]}", done=len(there)) as tracked,
    ):
        for seed, name in tracked:
            write_atomically(file_of(seed, name), json.dumps(train_one(name, seed), indent=1).encode())


def file_of(seed: int, name: str) -> Path:
    """Return the file of one result."""
    return HERE / "results" / f"{name.replace(' ', '_')}-{seed}.json"


def origin(name: str) -> dict[str, Any]:
    """Return what the results of a variant depend on besides seed and code."""
    return {"recipe": yaml.safe_load(find_recipe(RECIPE).read_text("utf-8")), "options": VARIANTS[name]}


def check_origin(file: Path, result: Mapping[str, Any], name: str) -> None:
    """Raise SystemExit if a result is not of this recipe and variant; results of early versions do not say."""
    if result.get("origin", origin(name)) != origin(name):
        raise SystemExit(f"{file} is a result of another recipe or of other options of {name!r}: move it away to train it anew")


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
        "origin": origin(name),
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


def summarise(results: Sequence[Mapping[str, Any]], speeds: Mapping[str, float]) -> dict[str, dict[str, float]]:
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
                "parameters": rows[0]["parameters"],
                "mmacs": rows[0]["macs"] / 1e6,
                "images_per_second": speeds.get(name, math.nan),
            }
    return summary


def page(summary: Mapping[str, Mapping[str, float]]) -> str:
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


def chance(summary: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return in words how far two means may be apart by chance, from the deviation over seeds that all variants share."""
    rows = [row for row in summary.values() if row["seeds"] > 1]
    if not rows:
        return []
    freedom = sum(row["seeds"] - 1 for row in rows)
    pooled = math.sqrt(sum((row["seeds"] - 1) * row["deviation"] ** 2 for row in rows) / freedom)
    seeds = min(row["seeds"] for row in rows)
    apart = stats.t.ppf(0.975, freedom) * pooled * math.sqrt(2 / seeds)
    return [
        f"Seeds differ by {pooled:.2f} points (the deviation of all variants, pooled, {freedom:.0f} degrees of freedom). Two",
        f"given means of {seeds:.0f} seeds less than {apart:.2f} points apart may be so by chance (95 %, two-sided t-test).",
        "",
    ]


def draw(summary: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw accuracy against the time for a thousand training images into a PNG file."""
    figure = new_figure(10, 6.5)
    with styled():
        _draw(figure.subplots(), summary)
        write_figure(path, figure)


def _draw(axis: Axes, summary: Mapping[str, Mapping[str, float]]) -> None:
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


def spread_out(values: Sequence[float], gap: float) -> list[float]:
    """Return values in the same order, at least ``gap`` apart, around the same middle as those they came from.

    Example:
        >>> spread_out([1.0, 1.0, 5.0], 1.0)
        [0.6666666666666667, 1.6666666666666667, 4.666666666666667]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    placed: dict[int, float] = {}
    last = -math.inf
    for index in order:
        last = placed[index] = max(values[index], last + gap)
    moved = (sum(placed.values()) - sum(values)) / max(len(values), 1)
    return [placed[index] - moved for index in range(len(values))]


if __name__ == "__main__":
    sys.exit(run_script(partial(auto_cli, main)))
