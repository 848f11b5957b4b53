"""Image classification as a Lightning module: any timm model, timm's optimizer, schedule, mixing and EMA."""

# B batch, C channels, K classes.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from flatten_transformer.models.checkpoint import check_fit
from flatten_transformer.tasks.build import build_model
from flatten_transformer.tasks.mixing import Mixing
from flatten_transformer.tasks.optimization import Optimization

Batch = tuple[Tensor, Tensor]


class ClassificationTask(LightningModule):
    """Train and judge an image classifier.

    Args:
        name: Any name of timm's registry, such as ``flatten_deit_tiny_patch16_224`` or ``resnet18``.
        model_args: Further keyword arguments of ``timm.create_model``, such as ``{"img_size": 32, "depth": 4}``.
        num_classes: Classes K; the command line takes it from the data.
        in_chans: Channels C of the images; the command line takes it from the data.
        optim: Learning rate, weight decay and warm-up.
        mixing: Mixup and CutMix, in training only.
        label_smoothing: Share of the target that goes to all classes alike, in training only.
        ema_decay: Share of the old weights that a moving average keeps at a step; it starts at 0 and rises to this
            as 1 - step^(-2/3). Validation, test and the saved model use the average. None keeps none.

    Raises:
        ValueError: If the model is unknown or a number is out of range.
        FloatingPointError: In training, if the loss is no longer finite.

    Example:
        >>> task = ClassificationTask("flatten_deit_tiny_patch16_224", {"depth": 1}, num_classes=10, in_chans=1)
        >>> task(torch.rand(2, 1, 224, 224)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        name: str = "flatten_deit_tiny_patch16_224",
        model_args: dict[str, Any] | None = None,
        *,
        num_classes: int,
        in_chans: int,
        optim: Optimization = Optimization(),  # noqa: B008  # frozen
        mixing: Mixing = Mixing(),  # noqa: B008  # frozen
        label_smoothing: float = 0.1,
        ema_decay: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in 0 … 1, below 1, got {label_smoothing}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must lie in 0 … 1, below 1, or be null for no average, got {ema_decay}")
        self.name = name
        self.model_args = dict(model_args or {})
        self.num_classes = num_classes
        self.optim = optim
        self.mixing = mixing
        self.label_smoothing = label_smoothing
        self.model = build_model(name, self.model_args, num_classes, in_chans)
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            # train(): in the mode of everything else until Lightning switches modes
            self.ema = ModelEmaV3(self.model, ema_decay, use_warmup=True).requires_grad_(False).train()
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @property
    def final_model(self) -> nn.Module:
        """The model to judge, keep and use: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of ``images`` ``[B, C, height, width]`` by :attr:`final_model`."""
        logits: Tensor = self.final_model(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one mixed batch."""
        images, targets = self.mixing(*batch, self.num_classes)
        loss = F.cross_entropy(self.model(images), targets, label_smoothing=self.label_smoothing)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} in epoch {self.current_epoch} at batch {batch_idx}: lower model.optim.lr "
                f"(now {self.optim.lr:g}), or add --trainer.gradient_clip_val 1, or train in float32"
            )
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of one validation batch."""
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of one test batch."""
        self._evaluate(batch, "test", self.test_accuracy)

    def _evaluate(self, batch: Batch, split: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        self.log(f"{split}/loss", F.cross_entropy(logits, labels), batch_size=len(images), sync_dist=True)
        self.log(f"{split}/accuracy", accuracy, prog_bar=True, batch_size=len(images))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule, which moves at every step."""
        optimizer = self.optim.optimizer(self.model)
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ValueError("the cosine must know where it ends: set trainer.max_epochs or trainer.max_steps")
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        schedule = self.optim.schedule(optimizer, int(total), steps_per_epoch=math.ceil(batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Scheduler, metric: Any) -> None:
        """Set the learning rate of the next step."""
        scheduler.step_update(self.global_step)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then take the new weights into the moving average."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)  # Lightning counts this step only afterwards

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError if the checkpoint is of another model, before anything is loaded."""
        check_fit(checkpoint["state_dict"], self)
