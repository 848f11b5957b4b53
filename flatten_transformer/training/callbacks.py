"""Training callbacks beyond Lightning's own."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from flatten_transformer.data.module import SPLITS, DataModule, epoch_seed
from flatten_transformer.data.source import Split
from flatten_transformer.tasks.model_file import save_model
from flatten_transformer.tasks.task import Task
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.printable import printable

_MODEL = "model.safetensors"
_FORMERLY_BEST = "best.safetensors"  # beside which model.safetensors held the last weights
_RANDOM = "flatten_transformer.random"  # key of our entry in a checkpoint


class KeepBatchSize(Callback):
    """Accumulate gradients so that each optimizer step sees ``data.batch_size`` images."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the number of micro-batches, once the number of devices is known."""
        if stage == "fit":
            trainer.accumulate_grad_batches = datamodule(trainer).share.micro_batches


class SeedEpochs(Callback):
    """Seed each epoch by itself, so that a resumed run draws the random numbers of an uninterrupted one.

    A checkpoint within an epoch keeps the generator states of all processes.
    """

    def __init__(self) -> None:
        self._states: list[Any] = []
        self._batches: int | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the generator states within an epoch."""
        if datamodule(trainer).batches_seen:
            states: list[Any] = [None] * trainer.world_size
            if trainer.world_size > 1:
                torch.distributed.all_gather_object(states, random_state())
            else:
                states = [random_state()]
            checkpoint[_RANDOM] = {"states": states, "batches": trainer.num_training_batches}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the generator states."""
        kept = checkpoint.get(_RANDOM, {"states": [], "batches": None})
        self._states, self._batches = kept["states"], kept["batches"]
        now = random_state()
        for state in self._states:
            set_random_state(state)  # raises now if it is malformed
        set_random_state(now)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the generator states once a resumed epoch has skipped the batches already seen.

        Raises:
            ValueError: If batches or devices differ from those of the checkpoint.
        """
        if not self._states:
            return
        if (len(self._states), self._batches) != (trainer.world_size, trainer.num_training_batches):
            raise ValueError(
                f"the checkpoint was saved within an epoch of {self._batches} batches on {len(self._states)} devices, and here "
                f"an epoch has {trainer.num_training_batches} on {trainer.world_size}: resume with the same data.batch_size, "
                "data.device_batch_size and trainer.devices, or from a checkpoint saved after an epoch, best-….ckpt"
            )
        loader: Any = trainer.train_dataloader
        state = self._states[trainer.global_rank]
        loader.after_seen = partial(set_random_state, state)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed Python, NumPy and PyTorch from run seed, epoch and process."""
        seed = epoch_seed(datamodule(trainer).seed, trainer.current_epoch, trainer.global_rank)
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the state of all generators of this process, in types that ``torch.load(weights_only=True)`` takes."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state(), **gpu}


def set_random_state(state: dict[str, Any]) -> None:
    """Set all generators of this process.

    Args:
        state: Result of :func:`random_state`.

    Example:
        >>> state = random_state()
        >>> first = random.random(), np.random.rand(), float(torch.rand(1))
        >>> set_random_state(state)
        >>> (random.random(), np.random.rand(), float(torch.rand(1))) == first
        True
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class SaveModel(Callback):
    """Write models beside the checkpoints: ``model.safetensors`` after the best epoch so far, ``last.safetensors`` at the end.

    The first is the one to use: the weights of the epoch that the result names, the best by the metric that chooses
    checkpoints; of equal epochs, which are many on a few validation images, the later. Without such a metric it holds the last
    weights. Both hold the moving average if there is one. The first can be used while training goes on.

    Attributes:
        best: The metric of the weights in ``model.safetensors``; None before the first.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self._trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the best model so far from the run that is resumed, or else begin a new comparison."""
        self._trained = True
        checkpoints = trainer.checkpoint_callback
        if self.best is None or not isinstance(checkpoints, ModelCheckpoint) or not checkpoints.dirpath:
            return
        resumed, here = Path(str(trainer.ckpt_path)), Path(checkpoints.dirpath) / _MODEL
        earlier = [resumed.parent / name for name in (_FORMERLY_BEST, _MODEL) if (resumed.parent / name).is_file()]
        if resumed.name != "last.ckpt" or not earlier:
            self.best = None
        elif trainer.is_global_zero and earlier[0].resolve() != here.resolve():
            write_atomically(here, earlier[0].read_bytes())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the model unless the metric that checkpoints are chosen by has fallen behind; of equal epochs the last counts."""
        checkpoints = trainer.checkpoint_callback
        if not isinstance(checkpoints, ModelCheckpoint) or checkpoints.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[checkpoints.monitor])
        if self.best is None or (value <= self.best if checkpoints.mode == "min" else value >= self.best):
            self.best = value
            assert isinstance(pl_module, Task)
            pl_module.keep_report()
            self._save(trainer, pl_module, _MODEL)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last weights, unless nothing was left to train."""
        if not self._trained:
            return
        self._save(trainer, pl_module, _MODEL if self.best is None else "last.safetensors")

    def _save(self, trainer: Trainer, task: LightningModule, name: str) -> None:
        """Write a file, in a run with checkpoints."""
        checkpoints = trainer.checkpoint_callback
        if isinstance(checkpoints, ModelCheckpoint) and checkpoints.dirpath and trainer.is_global_zero:
            assert isinstance(task, Task)
            save_model(Path(checkpoints.dirpath) / name, task.final_model, task.info())

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best = state_dict["best"]


def kept_best(trainer: Trainer) -> float | None:
    """Return the metric of the weights in ``model.safetensors``, of this start or the run that it resumed; None: of no metric."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it, unannotated
    return next(callback.best for callback in callbacks if isinstance(callback, SaveModel))


class PrintData(Callback):
    """Print classes, images and exclusions of the data before they are used."""

    def __init__(self) -> None:
        self._printed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print tables of the splits in use; later stages of the same process get one line."""
        splits = SPLITS.get(stage, ())
        if not (splits and trainer.is_global_zero):
            return
        contents = datamodule(trainer).contents(*splits)
        console = Console(stderr=True)
        if self._printed:
            console.print("\n".join(contents.line(split) for split in splits), soft_wrap=True, highlight=False)
        else:
            console.print(contents.tables())
        self._printed = True


class ReportSkipped(Callback):
    """Report unreadable images that were skipped at the end of an epoch, each image once.

    Args:
        shown: Number of images named.
    """

    def __init__(self, shown: int = 3) -> None:
        self.shown = shown
        self._reported: dict[Split, set[str]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report training images."""
        self._report(trainer, "train")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report validation images."""
        self._report(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report test images."""
        self._report(trainer, "test")

    def _report(self, trainer: Trainer, split: Split) -> None:
        reported = self._reported.setdefault(split, set())
        new = [name for name in datamodule(trainer).skipped(split) if name not in reported]
        if new:
            reported.update(new)
            names = ", ".join(map(printable, new[: self.shown])) + (" …" if len(new) > self.shown else "")
            rank_zero_info(f"Warning: {split} images skipped because they cannot be read: {len(new)} ({names})")


def datamodule(trainer: Trainer) -> DataModule:
    """Return the data module of a trainer."""
    data: DataModule = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, unannotated
    return data
