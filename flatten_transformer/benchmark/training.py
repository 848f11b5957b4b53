"""`flatten benchmark data` and `flatten benchmark loop`: how fast images come, and what the training loop costs beside them."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flatten_transformer.atomic_file import check_outputs, write_atomically
from flatten_transformer.benchmark import arguments
from flatten_transformer.benchmark.machine import describe
from flatten_transformer.benchmark.timing import Spread
from flatten_transformer.data.data_module import DataModule
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.tasks.quiet import quiet
from flatten_transformer.tasks.recipes import find_recipe
from flatten_transformer.tasks.training import TrainingCLI
from flatten_transformer.terminal import cell, say

_FOLDER = Path("runs/benchmark")


@dataclass(frozen=True)
class Pipeline:
    """How fast a recipe's training images come from some number of processes."""

    workers: int
    images: int
    images_per_s: float
    first_batch_s: float


def data(
    recipe: str, /, root: Path | None = None, workers: str = "0,1,2", budget_s: float = 10.0, folder: Path = _FOLDER
) -> None:
    """Measure how many training images a second a recipe's data give: read, augmented and batched.

    Args:
        recipe: Name or file of a recipe.
        root: Folder of the data, where the recipe does not say it.
        workers: Numbers of processes that load images besides the main one, separated by commas; each is measured.
        budget_s: Seconds for each.
        folder: Where data.json goes.
    """
    arguments.check_positive(budget_s=budget_s)
    check_outputs([folder / "data.json"], [Path(find_recipe(recipe))])
    counts = arguments.whole_numbers(workers, "workers", least=0)
    with quiet():
        found = [
            measure_pipeline(_build(recipe, root, f"--data.num_workers={count}").datamodule, budget_s)
            for count in track(counts, "loading", transient=True)
        ]
    table = Table("processes", "images a second", "first batch", title=cell(f"{recipe}: images of training"))
    for row in found:
        table.add_row(str(row.workers), f"{row.images_per_s:.0f}", f"{row.first_batch_s:.2f} s")
    _finish(table, {"recipe": recipe, "pipelines": [asdict(row) for row in found]}, folder / "data.json")


def measure_pipeline(data: DataModule, budget_s: float) -> Pipeline:
    """Draw batches of training images for some seconds, epoch after epoch.

    Args:
        data: Its training images are opened.
        budget_s: Seconds; the first batch, for which processes start, is not counted in the rate.
    """
    data.setup("fit")
    loader = data.train_dataloader()
    start, images, first_s = time.perf_counter(), 0, 0.0
    while time.perf_counter() - start < first_s + budget_s:
        for batch in loader:
            if not first_s:
                first_s = time.perf_counter() - start
                continue
            images += len(batch[0])
            if time.perf_counter() - start > first_s + budget_s:
                break
    seconds = time.perf_counter() - start - first_s
    return Pipeline(data.num_workers, images, images / seconds, first_s)


def loop(recipe: str, /, root: Path | None = None, steps: int = 20, rounds: int = 9, folder: Path = _FOLDER) -> None:
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
    race = BesidePlainLoop(rounds)
    with TemporaryDirectory() as runs, quiet():
        options = {"limit_train_batches": steps, "max_epochs": rounds, "limit_val_batches": 0, "default_root_dir": runs}
        short = "--model.optim.cooldown_epochs=0"  # so few epochs may not even hold the recipe's cool-down
        cli = _build(recipe, root, short, *(f"--trainer.{name}={value}" for name, value in options.items()))
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
    _finish(table, result, folder / "loop.json")


class BesidePlainLoop(Callback):
    """After each epoch of a training, train a twin for as many steps in a plain loop, and keep both times.

    Args:
        rounds: Epochs of the training.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.ours_s: list[float] = []
        self.plain_s: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the twin, with an optimizer and a schedule of its own."""
        assert isinstance(pl_module, ClassificationTask)
        self.twin = copy.deepcopy(pl_module.model)
        self.average = copy.deepcopy(pl_module.ema)
        self.optimizer = pl_module.optim.optimizer(self.twin, pl_module.data.batch_size)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it, and let the plain loop run."""
        self.ours_s.append(time.perf_counter() - self._start)
        assert isinstance(pl_module, ClassificationTask)
        start = time.perf_counter()
        self._train_twin(pl_module, int(trainer.num_training_batches))
        self.plain_s.append(time.perf_counter() - start)

    def _train_twin(self, task: ClassificationTask, steps: int) -> None:
        schedule = task.optim.schedule(self.optimizer, steps * self.rounds, steps)
        for step, (images, labels, _) in zip(range(steps), task.data.train_dataloader(), strict=False):
            images, labels = images.to(task.device), labels.to(task.device)
            mixed, targets = task.mixing(images, labels, task.num_classes)
            loss = F.cross_entropy(self.twin(mixed), targets, label_smoothing=task.label_smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            schedule.step_update(step)
            if self.average is not None:
                self.average.update(self.twin, step=step + 1)
        if task.device.type == "cuda":
            torch.cuda.synchronize()


def _build(recipe: str, root: Path | None, *options: str) -> TrainingCLI:
    """Build what a recipe trains, which keeps nothing."""
    nothing_kept = ("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false")
    where = [] if root is None else [f"--data.root={root}"]
    return TrainingCLI("fit", ["--config", recipe, *where, *nothing_kept, *options])


def _finish(table: Table, result: Mapping[str, Any], file: Path) -> None:
    header = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    write_atomically(file, json.dumps({"header": header, **result}, indent=1).encode())
    Console().print(table)
    say(f"Report: {file}")
