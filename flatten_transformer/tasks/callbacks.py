"""What happens around a training, beyond Lightning's own callbacks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from flatten_transformer.data.data_module import DataModule, epoch_seed
from flatten_transformer.data.source import Split
from flatten_transformer.tasks.model_file import save_model
from flatten_transformer.tasks.task import Task


class KeepBatchSize(Callback):
    """Gather the gradients of as many batches as it takes to see ``data.batch_size`` images before each optimizer step."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the trainer, which knows by now how many devices there are."""
        if stage == "fit":
            trainer.accumulate_grad_batches = datamodule(trainer).share.times


class SeedEpochs(Callback):
    """Begin each epoch with random numbers of its own, so that a resumed training draws what an uninterrupted one does."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed Python, NumPy and PyTorch by the seed of the run, the epoch and the process."""
        seed = epoch_seed(datamodule(trainer).seed, trainer.current_epoch, trainer.global_rank)
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)


class SaveModel(Callback):
    """Write ``model.safetensors`` beside the checkpoints when a training has ended.

    It holds the weights of the last step, or their moving average: that is where the schedule leads.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, where checkpoints are wanted at all."""
        checkpoints = trainer.checkpoint_callback
        if not isinstance(checkpoints, ModelCheckpoint) or not checkpoints.dirpath:
            return
        assert isinstance(pl_module, Task)
        if trainer.is_global_zero:
            path = Path(checkpoints.dirpath) / "model.safetensors"
            save_model(path, pl_module.final_model, pl_module.info())
            rank_zero_info(f"The model is in {path}; use it: flatten predict IMAGE --checkpoint {path}")


class ReportSkipped(Callback):
    """Say at the end of an epoch how many images could not be read and were skipped, each image once.

    Args:
        shown: How many of them are named.
    """

    def __init__(self, shown: int = 3) -> None:
        self.shown = shown
        self._said: dict[Split, set[str]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the training images."""
        self._report(trainer, "train")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the validation images."""
        self._report(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the test images."""
        self._report(trainer, "test")

    def _report(self, trainer: Trainer, split: Split) -> None:
        said = self._said.setdefault(split, set())
        new = [name for name in datamodule(trainer).skipped(split) if name not in said]
        if new:
            said.update(new)
            names = ", ".join(new[: self.shown]) + (" …" if len(new) > self.shown else "")
            rank_zero_info(f"Warning: {split} images skipped because they cannot be read: {len(new)} ({names})")


def datamodule(trainer: Trainer) -> DataModule:
    """Return the data module of a trainer."""
    data: DataModule = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, unannotated
    return data
