"""`flatten demo`: train, compare, explain and use a small FLatten-DeiT."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flatten_transformer.analysis.explanation import draw_explanation, explain
from flatten_transformer.analysis.selection import inkiest_token
from flatten_transformer.commands.demo_runs import Run, run_recipes
from flatten_transformer.data.digits import Digits
from flatten_transformer.models.cost import count_macs, count_parameters
from flatten_transformer.utils.atomic_file import write_png

RECIPES = {"FLatten-DeiT": "digits/flatten_deit", "softmax twin": "digits/softmax_deit"}


def demo(digit: int = 0, block: int = -1, head: int = 0, max_epochs: int | None = None, resume: bool = True) -> None:
    """Train a small FLatten-DeiT and its softmax twin on handwritten digits, compare, explain and use them.

    Args:
        digit: Test image to explain and classify, one of 360.
        block: Block shown in the picture; negative counts from the last.
        head: Head shown in the picture.
        max_epochs: Epochs of both runs, instead of the recipe's.
        resume: Take trainings that an earlier start with the same options, versions and code has finished, and go on with one
            that was stopped; false trains anew, into other folders.
    """
    console = Console()
    runs = run_recipes(console, RECIPES, max_epochs, resume=resume)
    console.print(_comparison(runs))

    flatten = next(iter(runs.values()))
    folder = flatten.model_file.parent
    image_file, picture = folder / f"test_digit_{digit}.png", folder / "explanation.png"
    _explain(runs, digit, block, head, image_file, picture)
    console.print(f"Where one query token of a test digit looks, step by step: {picture}")

    predict(console, image_file, flatten.model_file)
    _, label = Digits("test")[digit]
    console.print(f"It is a {label}.")


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
            run.training_time,
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
