"""Lightning's Trainer, with limits parsed the same way whatever was imported first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer as LightningTrainer


class Trainer(LightningTrainer):
    """Lightning's Trainer, whose limits parse as integers first: ``1`` is one batch, ``1.0`` all.

    Its ``Union[int, float]`` turns into the ``Union[float, int]`` of any library imported earlier, since typing caches
    equal unions, and a command line takes the first type that fits. Arguments are Lightning's.

    Example:
        >>> Trainer(limit_val_batches=1, accelerator="cpu", logger=False).limit_val_batches
        1
    """

    def __init__(
        self,
        *args: Any,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        limits: dict[str, Any] = {"limit_train_batches": limit_train_batches, "limit_val_batches": limit_val_batches}
        limits |= {"limit_test_batches": limit_test_batches, "limit_predict_batches": limit_predict_batches}
        limits |= {"overfit_batches": overfit_batches, "val_check_interval": val_check_interval}
        super().__init__(*args, **limits, **kwargs)
