"""What happens around a training, beyond Lightning's own callbacks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from flatten_transformer.data.data_module import DataModule, epoch_seed
from flatten_transformer.data.source import Split
from flatten_transformer.tasks.model_file import save_model
from flatten_transformer.tasks.task import Task

_SPLITS: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


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
    """Write models beside the checkpoints: ``best.safetensors`` after a better epoch, ``model.safetensors`` at the end.

    The last one holds the weights of the last step: that is where the schedule leads. Both are the moving average where
    there is one, and can be used while the training goes on.
    """

    def __init__(self) -> None:
        self.best: float | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the model if none before was better by the metric that chooses checkpoints."""
        checkpoints = trainer.checkpoint_callback
        if not isinstance(checkpoints, ModelCheckpoint) or checkpoints.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[checkpoints.monitor])
        if self.best is None or (value < self.best if checkpoints.mode == "min" else value > self.best):
            self.best = value
            self._save(trainer, pl_module, "best.safetensors")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the model, and say how to use it."""
        path = self._save(trainer, pl_module, "model.safetensors")
        if path is not None:
            rank_zero_info(f"The model is in {path}; use it: flatten predict IMAGE --checkpoint {path}")

    def _save(self, trainer: Trainer, task: LightningModule, name: str) -> Path | None:
        """Write a file, where checkpoints are wanted at all, and return its path."""
        checkpoints = trainer.checkpoint_callback
        if not isinstance(checkpoints, ModelCheckpoint) or not checkpoints.dirpath or not trainer.is_global_zero:
            return None
        assert isinstance(task, Task)
        path = Path(checkpoints.dirpath) / name
        save_model(path, task.final_model, task.info())
        return path

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best = state_dict["best"]


class TellData(Callback):
    """Say what the data hold, and what is left out of them, before anything is done with them."""

    def __init__(self) -> None:
        self.told = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print tables of the splits that are open now; what follows in the same process gets a line."""
        splits = _SPLITS.get(stage, ())
        if not (splits and trainer.is_global_zero):
            return
        contents = datamodule(trainer).contents(*splits)
        console = Console(stderr=True)
        if self.told:
            console.print("\n".join(contents.line(split) for split in splits), soft_wrap=True, highlight=False)
        else:
            console.print(contents.tables())
        self.told = True


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
