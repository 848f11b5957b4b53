"""Base task: timm's optimizer, schedule and weight averaging, and the check for a finite loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.transforms.v2.functional import to_pil_image

from flatten_transformer.data.module import DataModule
from flatten_transformer.models.fit_weights import check_fit
from flatten_transformer.tasks.facts import KEY, compare, compare_averages, compare_groups, compare_length, facts
from flatten_transformer.tasks.model_file import ModelInfo
from flatten_transformer.tasks.optimization import Optimization
from flatten_transformer.tasks.per_class import PerClass
from flatten_transformer.tasks.registry import TaskName


class Task(LightningModule):
    """Train and evaluate a model; subclasses define losses and metrics.

    Args:
        model: Model to train.
        name: Name it was built by, for the model file.
        model_args: Arguments it was built by, for the model file.
        optim: Learning rate, weight decay and warm-up.
        ema_decay: Decay of a moving average of the weights, which validation, test and the saved model then use; None for no
            average.
        ema_warmup: Let the decay rise from 0 to ``ema_decay`` as 1 - step^(-2/3); 0.9999 takes a million steps.

    Raises:
        ValueError: If ``ema_decay`` is out of range.

    Attributes:
        per_class: Numbers of each class in the last validation or test; None before.
        best_per_class: Those of the best epoch so far; None before.
    """

    task_name: ClassVar[TaskName]

    def __init__(
        self,
        model: nn.Module,
        name: str,
        model_args: Mapping[str, Any],
        optim: Optimization,
        ema_decay: float | None = None,
        ema_warmup: bool = True,
    ) -> None:
        super().__init__()
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must lie in 0 … 1, below 1, or be null for no average, got {ema_decay}")
        self.name = name
        self.model_args = dict(model_args)
        self.optim = optim
        self.model = model
        self.per_class: PerClass | None = None
        self.best_per_class: PerClass | None = None
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            # train(): same mode as the rest until Lightning switches it
            self.ema = ModelEmaV3(model, ema_decay, use_warmup=ema_warmup).requires_grad_(False).train()

    @property
    def final_model(self) -> nn.Module:
        """The model to evaluate and save: the moving average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def data(self) -> DataModule:
        """The trainer's data module."""
        data: DataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, unannotated
        return data

    def info(self) -> ModelInfo:
        """Return the description to store in the model file."""
        return ModelInfo(self.name, self.model_args, tuple(self.data.class_names), self.data.preprocessing, self.task_name)

    def count_macs(self) -> int | None:
        """Return the multiply-accumulates of one image, or None if its size is not fixed."""
        return None

    def keep_report(self) -> None:
        """Keep what the last validation has shown for the report at the end: its epoch is the best so far."""
        self.best_per_class = self.per_class

    def draw_report(self, folder: Path) -> list[Path]:
        """Draw the results of the training into ``folder``; return the files."""
        return []

    def show_batch(self, batch: Any, most: int) -> Image.Image | None:
        """Return a picture of a training batch as augmented, for people to look at; None if the task has none.

        Args:
            batch: From the training loader.
            most: Images shown.
        """
        return None

    def pictures(self, images: Iterable[Tensor]) -> list[Image.Image]:
        """Return preprocessed images, ``[C, height, width]`` each, as they were before they were normalised."""
        preprocessing = self.data.preprocessing
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (preprocessing.mean, preprocessing.std))
        return [to_pil_image((image.detach().cpu().float() * std + mean).clamp(0, 1)) for image in images]

    def report_loss(self, loss: Tensor, batch: Any, batch_idx: int) -> Tensor:
        """Log a loss, and return it.

        Args:
            loss: Scalar.
            batch: Its batch, images first.
            batch_idx: Index of the batch in its epoch.

        Raises:
            FloatingPointError: If the loss is not finite; the message names the step and the images.
        """
        if not torch.isfinite(loss):
            names = self.data.names(batch)
            shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
            raise FloatingPointError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}, "
                f"step {self.global_step + 1}: "
                f"lower model.optim.lr (now {self.optim.lr:g}), or add --trainer.gradient_clip_val 1, or train in float32; "
                f"the images were {shown}"
            )
        count = len(batch[0])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=count, sync_dist=True)
        return loss

    def recompute_activations(self) -> None:
        """Enable activation checkpointing wherever the model supports it.

        Raises:
            ValueError: If it does not support it anywhere.
        """
        switches: list[Any] = [getattr(part, "set_grad_checkpointing", None) for part in self.model.modules()]
        supported = [switch for switch in switches if switch is not None]
        try:
            for switch in supported:
                switch(True)
        except AssertionError:  # timm raises it for models that have the switch but no support
            supported = []
        if not supported:
            raise ValueError(f"{self.name} cannot recompute its activations: leave grad_checkpointing out")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its per-step schedule."""
        optimizer = self.optim.optimizer(self.model, self.data.batch_size)
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
        """Step, then update the moving average."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)  # Lightning counts this step only later

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the training facts in the checkpoint, above all the classes."""
        checkpoint[KEY] = facts(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError if the checkpoint does not match this training, before anything is loaded."""
        resume = self.trainer.state.fn == TrainerFn.FITTING
        compare(checkpoint.get(KEY), facts(self), resume=resume)
        compare_averages(checkpoint["state_dict"], self.state_dict())
        check_fit(checkpoint["state_dict"], self)
        if resume:
            compare_length(checkpoint, self.trainer.max_epochs, self.trainer.max_steps)
            groups = self.optim.optimizer(self.model, self.data.batch_size).param_groups
            compare_groups(checkpoint["optimizer_states"][0]["param_groups"], groups)
