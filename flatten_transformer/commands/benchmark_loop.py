"""`flatten benchmark loop`."""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from flatten_transformer.benchmark import arguments
from flatten_transformer.benchmark.output import FOLDER
from flatten_transformer.benchmark.timing import Spread
from flatten_transformer.benchmark.training import PlainLoopComparison, build_recipe, finish
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.recipes import find_recipe, say_full_name
from flatten_transformer.utils.atomic_file import check_outputs
from flatten_transformer.utils.terminal import cell


def loop(recipe: str, /, root: Path | None = None, steps: int = 20, rounds: int = 9, folder: Path = FOLDER) -> None:
    """Measure the overhead of the training loop: a recipe's epochs, alternating with the same steps in plain PyTorch.

    Args:
        recipe: Name or file of a classification recipe.
        root: Data folder, if the recipe names none.
        steps: Optimizer steps per round.
        rounds: Number of rounds; the first is warm-up.
        folder: Folder of loop.json.
    """
    arguments.check_positive(steps=steps, rounds=rounds - 1)
    recipe = say_full_name(recipe)
    check_outputs([folder / "loop.json"], [find_recipe(recipe)])
    comparison = PlainLoopComparison(rounds)
    with TemporaryDirectory() as runs, without_lightning_noise():
        options = {"limit_train_batches": steps, "max_epochs": rounds, "limit_val_batches": 0}
        short = "--model.optim.cooldown_epochs=0"  # may be longer than so few epochs
        cli = build_recipe(recipe, root, runs, short, *(f"--trainer.{name}={value}" for name, value in options.items()))
        if not isinstance(cli.model, ClassificationTask):
            raise ValueError(f"the loop is measured for classification, {recipe} is another task: choose another recipe")
        cli.trainer.callbacks.append(comparison)  # type: ignore[attr-defined]  # a list, unannotated
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    ratios = Spread.of([ours / plain for ours, plain in zip(comparison.ours_s[1:], comparison.plain_s[1:], strict=True)])
    table = Table("loop", "one round", title=cell(f"{recipe}: {steps} steps of {cli.datamodule.batch_size} images"))
    for name, seconds in (("ours", comparison.ours_s[1:]), ("plain PyTorch", comparison.plain_s[1:])):
        table.add_row(name, f"{statistics.median(seconds):.3f} s")
    table.add_row("ours / plain", f"{ratios.median:.3f} ({ratios.q1:.3f}-{ratios.q3:.3f})")
    times = {"ours_s": comparison.ours_s, "plain_s": comparison.plain_s, "ratio": ratios._asdict()}
    finish(table, {"recipe": recipe, "steps": steps, **times}, folder / "loop.json")
