"""Throughput of the data pipeline, and overhead of the training loop over plain PyTorch."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from flatten_transformer.benchmark.kept import KeptResults, open_kept
from flatten_transformer.benchmark.machine import describe
from flatten_transformer.data.module import DataModule
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.recipes import find_recipe
from flatten_transformer.utils.terminal import say


@dataclass(frozen=True)
class Pipeline:
    """Throughput of a recipe's training images with some number of workers."""

    workers: int
    images: int
    images_per_s: float
    first_batch_s: float


def measure_pipeline(data: DataModule, budget_s: float) -> Pipeline:
    """Load training batches for some seconds, epoch after epoch.

    Args:
        data: Data module; set up here.
        budget_s: Seconds; the first batch, which waits for workers to start, is not counted.
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


class PlainLoopComparison(Callback):
    """After each epoch, train a copy of the model for as many steps in a plain loop, and keep both times.

    Args:
        rounds: Epochs of the run.
        before_round: Called before each.
        after_round: Called after each.
    """

    def __init__(self, rounds: int, before_round: Callable[[], object], after_round: Callable[[], object]) -> None:
        self.rounds = rounds
        self.before_round = before_round
        self.after_round = after_round
        self.ours_s: list[float] = []
        self.plain_s: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the model and its moving average, with a new optimizer."""
        assert isinstance(pl_module, ClassificationTask)
        self.copy = copy.deepcopy(pl_module.model)
        self.average = copy.deepcopy(pl_module.ema)
        self.optimizer = pl_module.optim.optimizer(self.copy, pl_module.data.batch_size)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.before_round()
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock, and run the plain loop."""
        self.ours_s.append(time.perf_counter() - self._start)
        assert isinstance(pl_module, ClassificationTask)
        start = time.perf_counter()
        self._train_copy(pl_module, int(trainer.num_training_batches))
        self.plain_s.append(time.perf_counter() - start)
        self.after_round()

    def _train_copy(self, task: ClassificationTask, steps: int) -> None:
        schedule = task.optim.schedule(self.optimizer, steps * self.rounds, steps)
        for step, (images, labels, _) in zip(range(steps), task.data.train_dataloader(), strict=False):
            images, labels = images.to(task.device), labels.to(task.device)
            mixed, targets = task.mixing(images, labels, task.num_classes)
            loss = F.cross_entropy(self.copy(mixed), targets, label_smoothing=task.label_smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            schedule.step_update(step)
            if self.average is not None:
                self.average.update(self.copy, step=step + 1)
        if task.device.type == "cuda":
            torch.cuda.synchronize()


def build_recipe(recipe: str, root: Path | None, runs: str, *options: str) -> TrainingCLI:
    """Build the trainer, model and data of a recipe; nothing is kept, but Lightning creates the folder of its runs."""
    nothing_kept = ("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false")
    where = [] if root is None else [f"--data.root={root}"]
    return TrainingCLI("fit", ["--config", recipe, *where, *nothing_kept, f"--trainer.default_root_dir={runs}", *options])


def open_kept_recipe(
    file: Path, recipe: str, options: Mapping[str, Any], total: int, noun: str, *, resume: bool, resumable: bool = True
) -> KeptResults:
    """Find the file of a measurement of a recipe, as :func:`open_kept` does; the text of the recipe belongs to its arguments.

    Args:
        file: First name.
        recipe: Name or file.
        options: What else the results depend on.
        total: Number of parts.
        noun: Name of the parts, in the plural.
        resume: Take results of earlier starts; else begin a new file.
        resumable: An unfinished file can be continued; else only a finished one counts.
    """
    header = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    digest = hashlib.sha256(Path(find_recipe(recipe)).read_bytes()).hexdigest()[:12]
    arguments = {**options, "recipe": recipe, "recipe_digest": digest}
    return open_kept(file, header, arguments, total, noun, resume=resume, resumable=resumable)


def finish(table: Table, kept: KeptResults) -> None:
    """Print a table and where its numbers are."""
    Console().print(table)
    say(f"Report: {kept.path}")
