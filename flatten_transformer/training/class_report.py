"""The numbers of each class, printed and kept when a training, a validation or a test ends."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from flatten_transformer.tasks.per_class import PerClass
from flatten_transformer.tasks.task import Task
from flatten_transformer.training.callbacks import kept_best
from flatten_transformer.utils.terminal import Terminal, say


class ReportClasses(Callback):
    """Print the numbers of each class when a training, a validation or a test is over: of a training those of its best epoch.

    Args:
        folder: Run folder of a training, which gets ``per_class.csv`` and ``per_class.png``; None for neither.
        csv: File for the numbers of a validation or test; None for the table alone.
    """

    def __init__(self, folder: Path | None = None, csv: Path | None = None) -> None:
        self.folder = folder
        self.csv = csv

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the best epoch of a training, or the last."""
        assert isinstance(pl_module, Task)
        numbers = (pl_module.best_per_class or pl_module.per_class) if trainer.is_global_zero else None
        if numbers is None:
            return
        if pl_module.best_per_class is None and kept_best(trainer) is not None:
            say("The best epoch lies before this start: what is shown of each class is of the last", stderr=True)
        file = None if self.folder is None else self.folder / "per_class.csv"
        _print(numbers, "in per_class.csv" if file else "without a run folder", stderr=True)
        if file is not None:
            numbers.write_csv(file)
            say(f"See {file}", stderr=True)
            if find_spec("matplotlib") is not None:
                numbers.draw(file.with_suffix(".png"))
                say(f"See {file.with_suffix('.png')}", stderr=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a validation, unless it is part of a training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a test."""
        self._report(trainer, pl_module)

    def _report(self, trainer: Trainer, task: LightningModule) -> None:
        numbers = _numbers(trainer, task)
        if numbers is None:
            return
        _print(numbers, f"in {self.csv.name}" if self.csv else "by --csv FILE", stderr=False)
        if self.csv is not None:
            numbers.write_csv(self.csv)
            say(f"The numbers of each class are in {self.csv}")


def _numbers(trainer: Trainer, task: LightningModule) -> PerClass | None:
    assert isinstance(task, Task)
    return task.per_class if trainer.is_global_zero else None


def _print(numbers: PerClass, rest: str, *, stderr: bool) -> None:
    Terminal(stderr=stderr).print(numbers.table(rest))
