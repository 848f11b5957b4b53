"""AdamW and the cosine schedule, as the paper trains: timm's, chosen by four numbers."""

from __future__ import annotations

from dataclasses import dataclass

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Optimization:
    """How the weights are changed, step by step: AdamW, linear warm-up, one cosine.

    Args:
        lr: Learning rate at its highest.
        weight_decay: Decay of the weight matrices; biases, vectors and what the model exempts do not decay.
        warmup_epochs: Epochs, also fractions, in which the rate grows linearly from ``min_lr``.
        min_lr: Rate at the first step of the warm-up and at the end of the training.

    Raises:
        ValueError: If a number is out of range.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 5.0
    min_lr: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.lr < float("inf") or self.lr == 0:
            raise ValueError(f"lr must be positive and at least min_lr, got lr {self.lr} and min_lr {self.min_lr}")
        for name in ("weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Return AdamW with the groups of timm's rule: with decay, and without."""
        optimizer: Optimizer = create_optimizer_v2(model, opt="adamw", lr=self.lr, weight_decay=self.weight_decay)
        return optimizer

    def schedule(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: float) -> CosineLRScheduler:
        """Return the schedule over ``total_steps`` optimizer steps; call ``step_update(step)`` after each.

        Args:
            optimizer: From :meth:`optimizer`; its rate is set to that of step 0.
            total_steps: Optimizer steps of the whole training.
            steps_per_epoch: Optimizer steps an epoch.

        Example:
            >>> recipe = Optimization(lr=1.0, warmup_epochs=2, min_lr=0.0)
            >>> optimizer = recipe.optimizer(torch.nn.Linear(1, 1))
            >>> schedule = recipe.schedule(optimizer, total_steps=8, steps_per_epoch=1)
            >>> [round(schedule._get_lr(step)[0], 2) for step in range(9)]
            [0.0, 0.5, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04, 0.0]
        """
        return CosineLRScheduler(
            optimizer,
            t_initial=total_steps,
            lr_min=self.min_lr,
            warmup_t=round(self.warmup_epochs * steps_per_epoch),
            warmup_lr_init=self.min_lr,
            t_in_epochs=False,
        )
