"""Progress of a training: a bar on a terminal, a line an epoch in a log."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from torch import Tensor

from flatten_transformer.utils.printable import lasting
from flatten_transformer.utils.terminal import say


class ProgressBar(RichProgressBar):
    """Lightning's bar, with epochs counted from 1 and without the version."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        title = f"Epoch {current_epoch + 1}" + ("" if epochs in (None, -1) else f" of {epochs}")
        return f"{title:{len(self.validation_description)}}"  # or the bars would jump

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class EpochLines(Callback):
    """A line on stderr after every epoch: metrics, and about how long the rest will take."""

    def __init__(self) -> None:
        self._first = 0
        self._begin = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._first, self._begin = trainer.current_epoch, time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        if not trainer.is_global_zero:
            return
        done, planned = trainer.current_epoch + 1, trainer.max_epochs
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if isinstance(value, Tensor)}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.count("/") == 1)
        each = (time.monotonic() - self._begin) / (done - self._first)
        if planned in (None, -1):
            say(f"Epoch {done}: {shown}", stderr=True)
        else:
            say(f"Epoch {done} of {planned}: {shown}; about {lasting(each * (planned - done))} left", stderr=True)


def progress_callback() -> Callback:
    """Return a bar where somebody watches, lines elsewhere."""
    console = Console()
    return ProgressBar() if console.is_terminal or console.is_jupyter else EpochLines()
