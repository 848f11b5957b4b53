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
from flatten_transformer.train.process import without_lightning_noise
from flatten_transformer.train.recipes import find_recipe
from flatten_transformer.utils.atomic_file import check_outputs
from flatten_transformer.utils.terminal import cell


def loop(recipe: str, /, root: Path | None = None, steps: int = 20, rounds: int = 9, folder: Path = FOLDER) -> None:
    """Measure what the training loop costs: a recipe's epochs beside the same steps in a loop of plain PyTorch, in turn.

    Args:
        recipe: Name or file of a recipe for classification.
        root: Folder of the data, where the recipe does not say it.
        steps: Optimizer steps a round.
        rounds: How many; the first, in which everything is warmed up, is not counted.
        folder: Where loop.json goes.
    """
    arguments.check_positive(steps=steps, rounds=rounds - 1)
    check_outputs([folder / "loop.json"], [Path(find_recipe(recipe))])
    race = PlainLoopComparison(rounds)
    with TemporaryDirectory() as runs, without_lightning_noise():
        options = {"limit_train_batches": steps, "max_epochs": rounds, "limit_val_batches": 0}
        short = "--model.optim.cooldown_epochs=0"  # so few epochs may not even hold the recipe's cool-down
        cli = build_recipe(recipe, root, runs, short, *(f"--trainer.{name}={value}" for name, value in options.items()))
        if not isinstance(cli.model, ClassificationTask):
            raise ValueError(f"the loop is measured for classification, {recipe} is another task: choose another recipe")
        cli.trainer.callbacks.append(race)  # type: ignore[attr-defined]  # a list, unannotated
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    ratios = Spread.of([ours / plain for ours, plain in zip(race.ours_s[1:], race.plain_s[1:], strict=True)])
    table = Table("loop", "one round", title=cell(f"{recipe}: {steps} steps of {cli.datamodule.batch_size} images"))
    for name, seconds in (("ours", race.ours_s[1:]), ("plain PyTorch", race.plain_s[1:])):
        table.add_row(name, f"{statistics.median(seconds):.3f} s")
    table.add_row("ours / plain", f"{ratios.median:.3f} ({ratios.q1:.3f}-{ratios.q3:.3f})")
    result = {"recipe": recipe, "steps": steps, "ours_s": race.ours_s, "plain_s": race.plain_s, "ratio": ratios._asdict()}
    finish(table, result, folder / "loop.json")
