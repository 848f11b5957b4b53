"""The callbacks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as LightningBar

from flatten_transformer.training.arguments import Stage
from flatten_transformer.training.callbacks import KeepBatchSize, PrintData, ReportSkipped, SaveModel, SeedEpochs
from flatten_transformer.training.checkpoints import LAST
from flatten_transformer.training.class_report import ReportClasses
from flatten_transformer.training.history import History
from flatten_transformer.training.log_callbacks import LearningRate, LogPictures, LogSettings
from flatten_transformer.training.summary import Summary


def run_callbacks(stage: Stage, config: Namespace, folder: Path | None) -> list[Callback]:
    """Return the callbacks of every run, and those that report what it came to.

    Args:
        stage: What is run.
        config: The whole configuration.
        folder: Folder of the reports; None for none.
    """
    history = History()
    always: list[Callback] = [PrintData(), KeepBatchSize(), SeedEpochs(), ReportSkipped(), SaveModel(), history]
    if stage != "fit":
        return [*always, ReportClasses(csv=config.csv)]
    if config.trainer.fast_dev_run:
        return always
    logged = [LogSettings(history, _data_name(config.data)), LogPictures(folder)] if folder else []
    return [*always, Summary(history, folder), ReportClasses(folder), LearningRate(), *logged]


def _data_name(data: Any) -> str:
    """Return the name of a data set, and its folder if one is given."""
    return " ".join(str(part) for part in (data.dataset, data.root) if part is not None)


def has_bar(callbacks: Callback | Sequence[Callback] | None) -> bool:
    """Return whether callbacks that a user gives have a progress bar."""
    given = callbacks if isinstance(callbacks, Sequence) else [callbacks]
    return any(isinstance(callback, LightningBar) for callback in given)


def keep_last(checkpoint: ModelCheckpoint) -> ModelCheckpoint:
    """Return a callback for ``last.ckpt``, and switch it off in ``checkpoint``, which updates it after better epochs alone.

    Args:
        checkpoint: Keeps the best epoch; both write to its folder.
    """
    checkpoint.save_last = False
    return ModelCheckpoint(checkpoint.dirpath, LAST, enable_version_counter=False, save_on_train_epoch_end=True)
