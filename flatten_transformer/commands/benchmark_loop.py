"""`flatten benchmark loop`."""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from flatten_transformer.benchmark import arguments
from flatten_transformer.benchmark.kept import KeptResults
from flatten_transformer.benchmark.output import FOLDER
from flatten_transformer.benchmark.timing import Spread
from flatten_transformer.benchmark.training import PlainLoopComparison, build_recipe, finish, open_kept_recipe
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.recipes import say_full_name
from flatten_transformer.utils.progress import track
from flatten_transformer.utils.terminal import cell


def loop(
    recipe: str,
    /,
    root: Path | None = None,
    steps: int = 20,
    rounds: int = 9,
    resume: bool = True,
    folder: Path = FOLDER,
) -> None:
    """Measure the overhead of the training loop: a recipe's epochs, alternating with the same steps in plain PyTorch.

    Args:
        recipe: Name or file of a classification recipe.
        root: Data folder, if the recipe names none.
        steps: Optimizer steps per round.
        rounds: Number of rounds; the first is warm-up.
        resume: Show what an earlier start with the same options, on the same machine and code, has measured, if it went to
            the end; false measures anew, into another file.
        folder: Folder of loop.json, rewritten after each round; loop_2.json and so on if it holds other results.
    """
    arguments.check_positive(steps=steps, rounds=rounds - 1)
    recipe = say_full_name(recipe)
    options = {"root": root, "steps": steps, "rounds": rounds}
    kept = open_kept_recipe(folder / "loop.json", recipe, options, rounds, "rounds", resume=resume, resumable=False)
    with kept.telling(resumable=False):
        if kept.finished < rounds:
            _measure(kept, recipe, root, steps, rounds)
    with kept.reading() as times:
        ratios = Spread(**times["ratio"])
        table = Table("loop", "one round", title=cell(f"{recipe}: {steps} steps of {times['images_a_step']} images"))
        for name, seconds in (("ours", times["ours_s"][1:]), ("plain PyTorch", times["plain_s"][1:])):
            table.add_row(name, f"{statistics.median(seconds):.3f} s")
        table.add_row("ours / plain", f"{ratios.median:.3f} ({ratios.q1:.3f}-{ratios.q3:.3f})")
    finish(table, kept)


def _measure(kept: KeptResults, recipe: str, root: Path | None, steps: int, rounds: int) -> None:
    with TemporaryDirectory() as runs, without_lightning_noise():
        options = {"limit_train_batches": steps, "max_epochs": rounds, "limit_val_batches": 0}
        short = "--model.optim.cooldown_epochs=0"  # may be longer than so few epochs
        cli = build_recipe(recipe, root, runs, short, *(f"--trainer.{name}={value}" for name, value in options.items()))
        if not isinstance(cli.model, ClassificationTask):
            raise ValueError(f"the loop is measured for classification, {recipe} is another task: choose another recipe")
        with track(range(1, rounds + 1), "training round {}, then the same in plain PyTorch".format) as left:
            comparison = PlainLoopComparison(rounds, lambda: next(left), lambda: _keep(kept, comparison, cli))
            cli.trainer.callbacks.append(comparison)  # type: ignore[attr-defined]  # a list, unannotated
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)


def _keep(kept: KeptResults, comparison: PlainLoopComparison, cli: TrainingCLI) -> None:
    """Write the rounds so far, and the ratio of those after the first."""
    pairs = list(zip(comparison.ours_s, comparison.plain_s, strict=True))
    times = {"ours_s": comparison.ours_s, "plain_s": comparison.plain_s}
    ratio = Spread.of([ours / plain for ours, plain in pairs[1:] or pairs])._asdict()
    steps, images = kept.arguments["steps"], cli.datamodule.batch_size
    recipe = kept.arguments["recipe"]
    kept.write(len(pairs), {"recipe": recipe, "steps": steps, "images_a_step": images, **times, "ratio": ratio})
