"""Signals that ask a training to end: it saves where it is, between two steps, and goes on from there when resumed."""

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

HEEDED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(SystemExit):
    """A training ended because a signal asked for it; the exit status is a shell's, 128 + the signal's number.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class HeedSignals(Callback):
    """Save and end at SIGTERM, as SLURM and Kubernetes send it, at Ctrl-C and at SIGHUP; end at once at a second one.

    Between two steps ``last.ckpt`` is written, from which a training goes on with the very numbers of an undisturbed one.
    Behind the last step of an epoch the training first validates, and saves as it always does at the end of an epoch.
    """

    def __init__(self) -> None:
        self._received = 0
        self._process = 0

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to listen."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to listen; Lightning has set handlers of its own by now, and restores those from before at the end."""
        self._listen()

    def _listen(self) -> None:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in HEEDED:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
                    signal.signal(number, self._heed)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that loads images
            return
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = number
        said = f"\n{signal.Signals(number).name}: saving, then ending; a second signal ends at once\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, said.encode())  # print may have been interrupted

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and end, if asked to, between two steps of an epoch."""
        done = batch_idx + 1
        validates = done % trainer.val_check_batch == 0 if isinstance(trainer.val_check_batch, int) else False
        if done % trainer.accumulate_grad_batches or trainer.is_last_batch or validates or not self._asked(trainer):
            return
        path = _last_checkpoint(trainer)
        if path is not None:
            trainer.save_checkpoint(path, weights_only=False)
        self._end(trainer, f"in epoch {trainer.current_epoch} after {done} of {trainer.num_training_batches} batches", path)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, if asked to, after an epoch was saved."""
        if self._asked(trainer):
            self._end(trainer, f"before epoch {trainer.current_epoch}", _last_checkpoint(trainer))

    def _asked(self, trainer: Trainer) -> bool:
        """Return whether any process was asked to end: all end together."""
        return trainer.strategy.reduce_boolean_decision(bool(self._received), all=False)

    def _end(self, trainer: Trainer, when: str, path: Path | None) -> None:
        number = self._received or signal.SIGTERM
        saved = f"{printable(str(path))} holds its state: go on with --ckpt_path last" if path else "no checkpoints are kept"
        if path and not path.is_file():
            saved = "nothing was learned yet"
        rank_zero_info(f"The training was ended by {signal.Signals(number).name} {when}; {saved}")
        if trainer.global_rank:  # the first process answers for all; Lightning kills it where another fails
            raise SystemExit(0)
        raise Interrupted(number)


def _last_checkpoint(trainer: Trainer) -> Path | None:
    """Return where the state of a training is kept."""
    callback = trainer.checkpoint_callback
    return Path(callback.dirpath) / "last.ckpt" if isinstance(callback, ModelCheckpoint) and callback.dirpath else None
