"""What loggers get beside the metrics: the learning rate, settings, and pictures for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from flatten_transformer.tasks.registry import task_spec
from flatten_transformer.tasks.task import Task
from flatten_transformer.training.history import History, best_row
from flatten_transformer.utils.atomic_file import naming

_SHOWN = 16  # training images


class LearningRate(Callback):
    """Log ``lr``, one learning rate an epoch: that of its last step, and with layer decay the top layer's."""

    def __init__(self) -> None:
        self._rate = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the rate before the schedule moves on."""
        self._rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rate."""
        pl_module.log("lr", self._rate, sync_dist=True)  # equal on every device


class LogSettings(Callback):
    """Log what tells runs apart, with the best metric so far: TensorBoard's page of hyper-parameters.

    Args:
        history: Metrics by epoch, from a callback before this one.
        data: Name of the data set, and its folder if any.
    """

    def __init__(self, history: History, data: str) -> None:
        self.history = history
        self.data = data
        self._shown = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings."""
        assert isinstance(pl_module, Task)
        for logger in trainer.loggers:
            logger.log_hyperparams(self._settings(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the best metric; TensorBoard shows settings only once they have one."""
        assert isinstance(pl_module, Task)
        monitor = task_spec(pl_module.task_name).monitor
        best = best_row(self.history.rows, monitor)
        if best is None:
            return
        value, step = {f"best/{monitor.removeprefix('val/')}": best[monitor]}, trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                if self._shown:
                    logger.log_metrics(value, step)
                else:
                    logger.log_hyperparams(self._settings(trainer, pl_module), value, step)
        self._shown = True

    def _settings(self, trainer: Trainer, task: Task) -> dict[str, Any]:
        return {
            "model": task.name,
            "lr": task.optim.lr,
            "weight_decay": task.optim.weight_decay,
            "batch_size": task.data.batch_size,
            "epochs": trainer.max_epochs,
            "data": self.data,
        }


class LogPictures(Callback):
    """Show TensorBoard some training images as augmented, and at the end the pictures of the run folder.

    Args:
        folder: Run folder; put this callback behind those that draw into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shown = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show images of the first batch, once."""
        assert isinstance(pl_module, Task)
        if self._shown or not _boards(trainer):
            return
        self._shown = True
        if (picture := pl_module.show_batch(batch, _SHOWN)) is not None:
            _show(trainer, "training images", picture)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what was drawn, predictions on validation images among it."""
        if trainer.is_global_zero and _boards(trainer):
            for path in sorted(self.folder.glob("*.png")):
                with Image.open(path) as picture:
                    _show(trainer, f"results/{path.stem}", picture.convert("RGB"))


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _show(trainer: Trainer, tag: str, picture: Image.Image) -> None:
    for logger in _boards(trainer):
        with naming(Path(logger.log_dir)):
            logger.experiment.add_image(tag, np.asarray(picture), trainer.global_step, dataformats="HWC")
