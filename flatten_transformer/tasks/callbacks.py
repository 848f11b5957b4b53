"""What happens around a training, beyond Lightning's own callbacks."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from flatten_transformer.data.digits import Split
from flatten_transformer.data.image_data import ImageData
from flatten_transformer.tasks.classification import ClassificationTask
from flatten_transformer.tasks.model_file import ModelInfo, save_model


class SaveModel(Callback):
    """Write ``model.safetensors`` beside the checkpoints when a training has ended.

    It holds the weights of the last step, or their moving average: that is where the schedule leads.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, where checkpoints are wanted at all."""
        checkpoints = trainer.checkpoint_callback
        if not isinstance(checkpoints, ModelCheckpoint) or not checkpoints.dirpath:
            return
        task, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, unannotated
        if not isinstance(task, ClassificationTask) or not isinstance(data, ImageData):
            raise TypeError(f"SaveModel keeps a ClassificationTask trained on ImageData, got {type(task)} on {type(data)}")
        if trainer.is_global_zero:
            path = Path(checkpoints.dirpath) / "model.safetensors"
            save_model(path, task.final_model, model_info(task, data))
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
        data = trainer.datamodule  # type: ignore[attr-defined]  # as above
        said = self._said.setdefault(split, set())
        new = [name for name in data.skipped(split) if name not in said] if isinstance(data, ImageData) else []
        if new:
            said.update(new)
            names = ", ".join(new[: self.shown]) + (" …" if len(new) > self.shown else "")
            rank_zero_info(f"Warning: {split} images skipped because they cannot be read: {len(new)} ({names})")


def model_info(task: ClassificationTask, data: ImageData) -> ModelInfo:
    """Return what a file of this task's model must say."""
    return ModelInfo(task.name, task.model_args, tuple(data.class_names), data.preprocessing)
