"""What every training shares: timm's optimizer, schedule and moving average, and the watch over the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from flatten_transformer.data.module import DataModule
from flatten_transformer.models.fit_weights import check_fit
from flatten_transformer.tasks.facts import KEY, compare, compare_averages, compare_groups, compare_length, facts
from flatten_transformer.tasks.model_file import ModelInfo
from flatten_transformer.tasks.optimization import Optimization
from flatten_transformer.tasks.registry import TaskName


class Task(LightningModule):
    """Train and judge a model; a subclass says by which loss and which metrics.

    Args:
        model: What is trained.
        name: What it was built by, for its file.
        model_args: What else it was built by.
        optim: Learning rate, weight decay and warm-up.
        ema_decay: Share of the old weights that a moving average keeps at a step. Validation, test and the saved model use
            the average. None keeps none.
        ema_warmup: The share starts at 0 and rises to ``ema_decay`` as 1 - step^(-2/3); 0.9999 takes a million steps.

    Raises:
        ValueError: If ``ema_decay`` is out of range.
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
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            # train(): in the mode of everything else until Lightning switches modes
            self.ema = ModelEmaV3(model, ema_decay, use_warmup=ema_warmup).requires_grad_(False).train()

    @property
    def final_model(self) -> nn.Module:
        """The model to judge, keep and use: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def data(self) -> DataModule:
        """The data module of the trainer."""
        data: DataModule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, unannotated
        return data

    def info(self) -> ModelInfo:
        """Return what a file of this task's model must say."""
        return ModelInfo(self.name, self.model_args, tuple(self.data.class_names), self.data.preprocessing, self.task_name)

    def count_macs(self) -> int | None:
        """Return the multiply-accumulates of one image, where its size is known."""
        return None

    def draw_report(self, folder: Path) -> list[Path]:
        """Draw how the training ended into ``folder``; return the files."""
        return []

    def report_loss(self, loss: Tensor, batch: Any, batch_idx: int) -> Tensor:
        """Log a loss, and return it.

        Args:
            loss: A number.
            batch: What it is the loss of; the images come first.
            batch_idx: The number of the batch in its epoch.

        Raises:
            FloatingPointError: If the loss is not finite; the message says where, and of which images.
        """
        if not torch.isfinite(loss):
            names = self.data.names(batch)
            shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
            raise FloatingPointError(
                f"the loss became {loss.item()} in epoch {self.current_epoch} at batch {batch_idx}, step {self.global_step}: "
                f"lower model.optim.lr (now {self.optim.lr:g}), or add --trainer.gradient_clip_val 1, or train in float32; "
                f"the images were {shown}"
            )
        count = len(batch[0])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=count, sync_dist=True)
        return loss

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them, wherever the model can.

        Raises:
            ValueError: If it can nowhere.
        """
        switches: list[Any] = [getattr(part, "set_grad_checkpointing", None) for part in self.model.modules()]
        able = [switch for switch in switches if switch is not None]
        try:
            for switch in able:
                switch(True)
        except AssertionError:  # timm's answer where a model has the switch, but not the ability
            able = []
        if not able:
            raise ValueError(f"{self.name} cannot recompute its activations: leave grad_checkpointing out")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule, which moves at every step."""
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
        """Step, then take the new weights into the moving average."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)  # Lightning counts this step only afterwards

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint what it is of: classes above all."""
        checkpoint[KEY] = facts(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError if the checkpoint is of something else, before anything is loaded."""
        resume = self.trainer.state.fn == TrainerFn.FITTING
        compare(checkpoint.get(KEY), facts(self), resume=resume)
        compare_averages(checkpoint["state_dict"], self.state_dict())
        check_fit(checkpoint["state_dict"], self)
        if resume:
            compare_length(checkpoint, self.trainer.max_epochs, self.trainer.max_steps)
            groups = self.optim.optimizer(self.model, self.data.batch_size).param_groups
            compare_groups(checkpoint["optimizer_states"][0]["param_groups"], groups)
