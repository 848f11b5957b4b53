"""timm's optimizers and learning-rate schedules (cosine, steps, polynomial), as in the paper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from flatten_transformer.utils.suggest import did_you_mean


@dataclass(frozen=True)
class Optimization:
    """Optimizer settings and schedule: linear warm-up, one decay, and a cool-down.

    ``lr``, ``warmup_lr`` and ``min_lr`` are given for a batch of ``lr_base_size`` images; all three scale linearly with the
    batch, as in the released training code.

    Args:
        lr: Peak learning rate.
        weight_decay: Decay of weight matrices; biases, vectors and parameters exempted by the model do not decay.
        opt: timm optimizer, see ``timm.optim.list_optimizers()``: ``"adamw"`` as in the paper, ``"muon"`` for
            short runs from scratch.
        betas: Decay rates of the first and second moments; None for the optimizer's default.
        eps: Added to the optimizer's denominator; None for its default.
        warmup_epochs: Epochs of linear warm-up from ``warmup_lr``; may be fractional.
        warmup_lr: Learning rate at the first step; None for ``min_lr``.
        min_lr: Learning rate at the end of the decay.
        cooldown_epochs: Final epochs at ``min_lr``, included in the training's length: 300 epochs of cosine and 10 of
            cool-down are 310.
        lr_base_size: Batch size the rates are given for; None for no scaling.
        layer_decay: Learning rate of a layer relative to the layer above it, for fine-tuning; None for one rate.
        milestones: Epochs after which the rate drops to a tenth, as for detectors; None for a cosine.
        power: Exponent of a polynomial decay to ``min_lr``, as for segmenters, 1 for linear; None for a cosine.

    Raises:
        ValueError: If a number is out of range, or timm has no such optimizer.

    Example:
        >>> recipe = Optimization(lr=5e-4, lr_base_size=512)
        >>> recipe.optimizer(torch.nn.Linear(1, 1), batch_size=1024).param_groups[0]["lr"]
        0.001
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    opt: str = "adamw"
    betas: tuple[float, float] | None = None
    eps: float | None = None
    warmup_epochs: float = 5.0
    warmup_lr: float | None = None
    min_lr: float = 1e-6
    cooldown_epochs: float = 0.0
    lr_base_size: int | None = None
    layer_decay: float | None = None
    milestones: tuple[float, ...] | None = None
    power: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.lr < float("inf") or self.lr == 0:
            raise ValueError(f"lr must be positive and at least min_lr, got lr {self.lr} and min_lr {self.min_lr}")
        if self.warmup_lr is not None and not 0 <= self.warmup_lr <= self.lr:
            raise ValueError(f"warmup_lr must lie in 0 … lr, got warmup_lr {self.warmup_lr} and lr {self.lr}")
        for name in ("weight_decay", "warmup_epochs", "cooldown_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.opt not in list_optimizers():
            raise ValueError(f"opt must be an optimizer of timm, got {self.opt!r}: {did_you_mean(self.opt, list_optimizers())}")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in 0 … 1, below 1, got {list(self.betas)}")
        if self.eps is not None and self.eps <= 0:
            raise ValueError(f"eps must be positive, got {self.eps}")
        if self.lr_base_size is not None and self.lr_base_size < 1:
            raise ValueError(f"lr_base_size must be at least 1, or null for rates as they are, got {self.lr_base_size}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in 0 … 1, above 0, or be null for one rate, got {self.layer_decay}")
        if self.milestones is not None and list(self.milestones) != sorted({0.0, *self.milestones})[1:]:
            raise ValueError(f"milestones must be epochs above 0 in rising order, got {list(self.milestones)}")
        if self.milestones is not None and self.cooldown_epochs:
            raise ValueError("a cool-down follows a cosine, not milestones: leave one of them out")
        if self.power is not None and (self.power <= 0 or self.milestones is not None):
            raise ValueError(f"power must be positive and without milestones, got {self.power} and {self.milestones}")

    def optimizer(self, model: nn.Module, batch_size: int) -> Optimizer:
        """Build the optimizer with timm's parameter groups: by weight decay and, if set, by layer.

        Args:
            model: Model to optimise.
            batch_size: Images per optimizer step, over all devices.

        Raises:
            ValueError: If betas or eps are given but the optimizer has none.
        """
        scale = 1.0 if self.lr_base_size is None else batch_size / self.lr_base_size
        given = {"betas": self.betas, "eps": self.eps}
        chosen: dict[str, Any] = {name: number for name, number in given.items() if number is not None}
        optimizer: Optimizer = create_optimizer_v2(
            model,
            opt=self.opt,
            lr=self.lr * scale,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            **chosen,
        )
        if not chosen.keys() <= optimizer.defaults.keys():  # timm silently drops unknown options
            unknown = ", ".join(sorted(chosen.keys() - optimizer.defaults.keys()))
            raise ValueError(f"{self.opt} has no {unknown}: leave it out of model.optim")
        return optimizer

    def schedule(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: float) -> Scheduler:
        """Build the schedule over ``total_steps`` optimizer steps; call ``step_update(step)`` after each.

        Args:
            optimizer: From :meth:`optimizer`; its learning rate is set to that of step 0.
            total_steps: Optimizer steps of the whole training, cool-down included.
            steps_per_epoch: Optimizer steps per epoch.

        Raises:
            ValueError: If the cool-down leaves no step for the decay.

        Example:
            >>> recipe = Optimization(lr=1.0, warmup_epochs=2, min_lr=0.0, cooldown_epochs=1)
            >>> optimizer = recipe.optimizer(torch.nn.Linear(1, 1), batch_size=1)
            >>> schedule = recipe.schedule(optimizer, total_steps=9, steps_per_epoch=1)
            >>> [round(schedule._get_lr(step)[0], 2) for step in range(10)]
            [0.0, 0.5, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04, 0.0, 0.0]
        """
        scale = optimizer.defaults["lr"] / self.lr
        warmup: dict[str, Any] = {
            "warmup_t": round(self.warmup_epochs * steps_per_epoch),
            "warmup_lr_init": (self.min_lr if self.warmup_lr is None else self.warmup_lr) * scale,
            "t_in_epochs": False,
        }
        if self.milestones is not None:
            falls = [round(epoch * steps_per_epoch) + 1 for epoch in self.milestones]  # timm counts from 1 here
            return MultiStepLRScheduler(optimizer, falls, decay_rate=0.1, warmup_prefix=False, **warmup)
        cosine_steps = total_steps - round(self.cooldown_epochs * steps_per_epoch)
        if cosine_steps < 1 < total_steps:  # a single step is a dry run without a curve
            raise ValueError(
                f"a cool-down of {self.cooldown_epochs:g} epochs leaves nothing of a training of "
                f"{total_steps / steps_per_epoch:g}: raise trainer.max_epochs or lower model.optim.cooldown_epochs"
            )
        curve = CosineLRScheduler if self.power is None else partial(PolyLRScheduler, power=self.power)
        return curve(optimizer, t_initial=max(cosine_steps, 1), lr_min=self.min_lr * scale, **warmup)
