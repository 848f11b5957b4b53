"""A model, data and a trainer small enough to train in tests."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from flatten_transformer.tasks.classification.augmentation import Augmentation
from flatten_transformer.tasks.classification.data import ImageData
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.training.process import without_lightning_noise

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
MakeTask = Callable[..., ClassificationTask]
Fit = Callable[..., Trainer]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tensors this small are slower on more, and test workers share the cores


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with without_lightning_noise():
        yield


@pytest.fixture(scope="session")
def make_task() -> MakeTask:
    def make(**changes: Any) -> ClassificationTask:
        torch.manual_seed(0)
        arguments: dict[str, Any] = {
            "model_args": TINY,
            "num_classes": 10,
            "in_chans": 1,
        }
        return ClassificationTask(**(arguments | changes))

    return make


@pytest.fixture(scope="session")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    folder = tmp_path_factory.mktemp("runs")

    def run(task: LightningModule, ckpt_path: Path | None = None, *, still: bool = False, **options: Any) -> Trainer:
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        defaults: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}
        trainer = Trainer(
            **(defaults | options),
            default_root_dir=folder,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        crops = Augmentation((1.0, 1.0), (1.0, 1.0)) if still else Augmentation()
        data = ImageData(img_size=16, batch_size=8, augmentation=crops)
        trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run
