"""What happens around a training, beyond Lightning's own callbacks."""

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
from flatten_transformer.utils.printable import printable

_RANDOM = "flatten_transformer.random"  # of our entry in a checkpoint


class KeepBatchSize(Callback):
    """Gather the gradients of as many batches as it takes to see ``data.batch_size`` images before each optimizer step."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the trainer, which knows by now how many devices there are."""
        if stage == "fit":
            trainer.accumulate_grad_batches = datamodule(trainer).share.micro_batches


class SeedEpochs(Callback):
    """Begin each epoch with random numbers of its own, so that a resumed training draws what an uninterrupted one does.

    A checkpoint of an epoch that has not ended keeps the state of the generators, of every process.
    """

    def __init__(self) -> None:
        self._states: list[Any] = []
        self._batches: int | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep where the random numbers are, if the epoch has not ended."""
        if datamodule(trainer).batches_seen:
            states: list[Any] = [None] * trainer.world_size
            if trainer.world_size > 1:
                torch.distributed.all_gather_object(states, random_state())
            else:
                states = [random_state()]
            checkpoint[_RANDOM] = {"states": states, "batches": trainer.num_training_batches}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up what was kept."""
        kept = checkpoint.get(_RANDOM, {"states": [], "batches": None})
        self._states, self._batches = kept["states"], kept["batches"]
        now = random_state()
        for state in self._states:
            set_random_state(state)  # raises what is odd in it now
        set_random_state(now)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that a resumed epoch goes on where it was.

        Raises:
            ValueError: If it is divided otherwise than the epoch that the checkpoint is of.
        """
        if not self._states:
            return
        if (len(self._states), self._batches) != (trainer.world_size, trainer.num_training_batches):
            raise ValueError(
                f"the checkpoint is of the midst of an epoch of {self._batches} batches on {len(self._states)} devices, and here "
                f"an epoch has {trainer.num_training_batches} on {trainer.world_size}: resume with the same data.batch_size, "
                "data.device_batch_size and trainer.devices, or from a checkpoint of an epoch's end, best-….ckpt"
            )
        loader: Any = trainer.train_dataloader
        state = self._states[trainer.global_rank]
        loader.after_seen = partial(set_random_state, state)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed Python, NumPy and PyTorch by the seed of the run, the epoch and the process."""
        seed = epoch_seed(datamodule(trainer).seed, trainer.current_epoch, trainer.global_rank)
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the state of all generators of this process, in plain types, as files of weights hold them."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    gpu = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state(), **gpu}


def set_random_state(state: dict[str, Any]) -> None:
    """Set all generators of this process.

    Args:
        state: From :func:`random_state`.

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
            rank_zero_info(printable(f"The model is in {path}; use it: flatten predict IMAGE --checkpoint {path}"))

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
        splits = SPLITS.get(stage, ())
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
            names = ", ".join(map(printable, new[: self.shown])) + (" …" if len(new) > self.shown else "")
            rank_zero_info(f"Warning: {split} images skipped because they cannot be read: {len(new)} ({names})")


def datamodule(trainer: Trainer) -> DataModule:
    """Return the data module of a trainer."""
    data: DataModule = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, unannotated
    return data
