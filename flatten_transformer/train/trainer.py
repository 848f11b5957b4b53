"""Lightning's Trainer with limits that are read the same way whatever was imported before it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer as LightningTrainer


class Trainer(LightningTrainer):
    """Lightning's Trainer, whose limits are whole numbers first: ``1`` is one batch, ``1.0`` all of them.

    Its own ``Union[int, float]`` is the ``Union[float, int]`` of any library that was imported earlier, since typing
    caches equal unions, and a command line takes the first type that fits.

    Args: as Lightning's.

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
        overfit_batches: int | float = 0.0,
        **kwargs: Any,
    ) -> None:
        limits: dict[str, Any] = {"limit_train_batches": limit_train_batches, "limit_val_batches": limit_val_batches}
        limits |= {"limit_test_batches": limit_test_batches, "overfit_batches": overfit_batches}
        super().__init__(*args, **limits, **kwargs)
