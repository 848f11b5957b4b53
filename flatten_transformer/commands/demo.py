"""`flatten demo`: train, compare, explain and use a small FLatten-DeiT."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table

from flatten_transformer.analysis.explanation import draw_explanation, explain
from flatten_transformer.analysis.selection import inkiest_token
from flatten_transformer.data.digits import Digits
from flatten_transformer.models.cost import count_macs, count_parameters
from flatten_transformer.training.cli import train
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.utils.atomic_file import write_png
from flatten_transformer.utils.stopping import telling_what_is_kept

RECIPES = {"FLatten-DeiT": "digits/flatten_deit", "softmax twin": "digits/softmax_deit"}


class Run(NamedTuple):
    """A trained model and its test metrics."""

    task: Any
    data: Any
    model_file: Path
    metrics: Mapping[str, float]
    training_s: float

    @property
    def model(self) -> Any:
        """The model that was tested and saved."""
        return self.task.final_model


def demo(digit: int = 0, block: int = -1, head: int = 0, max_epochs: int | None = None) -> None:
    """Train a small FLatten-DeiT and its softmax twin on handwritten digits, compare, explain and use them.

    Args:
        digit: Test image to explain and classify, one of 360.
        block: Block shown in the picture; negative counts from the last.
        head: Head shown in the picture.
        max_epochs: Epochs of both runs, instead of the recipe's.
    """
    console = Console()
    runs = run_recipes(console, RECIPES, max_epochs)
    console.print(_comparison(runs))

    flatten = next(iter(runs.values()))
    folder = flatten.model_file.parent
    image_file, picture = folder / f"test_digit_{digit}.png", folder / "explanation.png"
    _explain(runs, digit, block, head, image_file, picture)
    console.print(f"Where one query token of a test digit looks, step by step: {picture}")

    predict(console, image_file, flatten.model_file)
    _, label = Digits("test")[digit]
    console.print(f"It is a {label}.")


def run_recipes(console: Console, recipes: Mapping[str, str], max_epochs: int | None) -> dict[str, Run]:
    """Train by recipes, one after the other, and test the results.

    Args:
        console: Gets a rule with the number and the command of each.
        recipes: Names of the recipes by display name.
        max_epochs: Epochs instead of the recipes'.

    Raises:
        KeyboardInterrupt: On a signal; its message says what is kept and how to go on.
    """
    runs: dict[str, Run] = {}
    with telling_what_is_kept(lambda: _kept(runs, recipes)):
        for name, recipe in recipes.items():
            runs[name] = run_recipe(console, f"{len(runs) + 1} of {len(recipes)}: {name}", recipe, max_epochs)
    return runs


def _kept(runs: Mapping[str, Run], recipes: Mapping[str, str]) -> str:
    """Return what a signal leaves: finished models, and a checkpoint of the training at hand."""
    files = "".join(f", {run.model_file}" for run in runs.values())
    finished = f"{len(runs)} of {len(recipes)} trainings are done{files}"
    at_hand = list(recipes.values())[len(runs) : len(runs) + 1]
    return "; ".join([finished, *(f"flatten fit --config {recipe} --ckpt_path last goes on with the next" for recipe in at_hand)])


def run_recipe(console: Console, name: str, recipe: str, max_epochs: int | None) -> Run:
    """Train by a recipe and test the result.

    Args:
        console: Gets a rule with the command.
        name: Display name.
        recipe: Name of the recipe.
        max_epochs: Epochs instead of the recipe's.
    """
    console.rule(f"{name}: flatten fit --config {recipe}")
    start = time.perf_counter()
    epochs = [] if max_epochs is None else [f"--trainer.max_epochs={max_epochs}"]
    cli = train("fit", ["--config", recipe, "--trainer.enable_model_summary=false", *epochs])
    training_s = time.perf_counter() - start
    checkpoint = cli.trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    assert checkpoint.dirpath
    best = checkpoint.best_model_path  # whose weights model.safetensors holds
    with without_lightning_noise():
        metrics = cli.trainer.test(cli.model, cli.datamodule, ckpt_path=best, verbose=False, weights_only=True)[0]
    model_file = Path(checkpoint.dirpath) / "model.safetensors"
    return Run(cli.model.eval(), cli.datamodule, model_file, metrics, training_s)


def predict(console: Console, image: Path, model_file: Path, *options: str) -> None:
    """Use a model file in a new process, as users will."""
    command = ["predict", str(image), "--checkpoint", str(model_file), *options]
    console.print(f"In a new process: flatten {' '.join(command)}", soft_wrap=True)
    subprocess.run([sys.executable, "-m", "flatten_transformer", *command], check=True)


def _comparison(runs: dict[str, Run]) -> Table:
    table = Table("model", title="Handwritten digits, the same recipe for both")
    for heading in ("test accuracy", "parameters", "MMACs an image", "training time"):
        table.add_column(heading, justify="right")
    for name, run in runs.items():
        preprocessing = run.data.preprocessing
        macs = count_macs(run.model, (preprocessing.in_chans, preprocessing.img_size, preprocessing.img_size))
        table.add_row(
            name,
            f"{run.metrics['test/accuracy']:.1%}",
            f"{count_parameters(run.model):,}",
            f"{macs / 1e6:.2f}",
            f"{run.training_s:.0f} s",
        )
    return table


def _explain(runs: dict[str, Run], digit: int, block: int, head: int, image_file: Path, picture: Path) -> None:
    flatten, softmax = runs.values()
    image, _ = Digits("test", flatten.data.preprocessing.img_size)[digit]
    write_png(image_file, image)
    pixels = flatten.data.preprocessing(image)[None]  # [1, C, size, size]
    query = inkiest_token(pixels[0, 0], flatten.model.patch_embed.grid_size)
    views = explain(flatten.model, softmax.model, pixels, query=query, block=block, head=head)
    draw_explanation(pixels[0, 0], views, picture)
