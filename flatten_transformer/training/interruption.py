"""Stop on a signal: save between two steps, to resume from there."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from flatten_transformer.utils.printable import printable

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(SystemExit):
    """A signal ended training; the exit status is the shell's, 128 + signal number.

    Args:
        number: Signal number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class SaveOnSignal(Callback):
    """Save and exit on SIGTERM (SLURM, Kubernetes), Ctrl-C and SIGHUP; exit at once on a second one.

    ``last.ckpt`` is written between two steps; a run resumed from it gets the same numbers as an uninterrupted one. After the
    last step of an epoch, validation and the usual save come first.
    """

    def __init__(self) -> None:
        self._received = 0
        self._process = 0

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers."""
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers again: Lightning has set its own by now, and restores earlier ones at the end."""
        self._install()

    def _install(self) -> None:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # set by nohup
                    signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loading worker
            return
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = number
        message = f"\n{signal.Signals(number).name}: saving, then ending; a second signal ends at once\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())  # print is not reentrant

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and exit on a signal, between two steps of an epoch."""
        done = batch_idx + 1
        validates = done % trainer.val_check_batch == 0 if isinstance(trainer.val_check_batch, int) else False
        if done % trainer.accumulate_grad_batches or trainer.is_last_batch or validates or not self._requested(trainer):
            return
        path = _last_checkpoint(trainer)
        if path is not None:
            trainer.save_checkpoint(path, weights_only=False)
        self._end(trainer, f"in epoch {trainer.current_epoch + 1} after {done} of {trainer.num_training_batches} batches", path)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exit on a signal, after the last epoch was saved."""
        if self._requested(trainer):
            self._end(trainer, f"before epoch {trainer.current_epoch + 1}", _last_checkpoint(trainer))

    def _requested(self, trainer: Trainer) -> bool:
        """Return whether any process received a signal: all exit together."""
        return trainer.strategy.reduce_boolean_decision(bool(self._received), all=False)

    def _end(self, trainer: Trainer, when: str, path: Path | None) -> None:
        number = self._received or signal.SIGTERM
        saved = f"{printable(str(path))} holds its state: go on with --ckpt_path last" if path else "no checkpoints are kept"
        if path and not path.is_file():
            saved = "nothing was learned yet"
        rank_zero_info(f"The training was ended by {signal.Signals(number).name} {when}; {saved}")
        if trainer.global_rank:  # rank 0 sets the exit status; Lightning kills it if another rank fails
            raise SystemExit(0)
        raise Interrupted(number)


def _last_checkpoint(trainer: Trainer) -> Path | None:
    """Return the path of ``last.ckpt``, or None if checkpoints are off."""
    callback = trainer.checkpoint_callback
    return Path(callback.dirpath) / "last.ckpt" if isinstance(callback, ModelCheckpoint) and callback.dirpath else None
