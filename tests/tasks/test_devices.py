"""The same training on one process and on two, at once and in pieces."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flatten_transformer.training.cli import TrainingCLI, train
from tests.runs import RECIPE, newest_checkpoint

ROOT = Path(__file__).parents[2]
SIZES = "{img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}"
STILL = ["--data.augmentation", "{scale: [1, 1], ratio: [1, 1]}"]  # devices draw their augmentations each by itself
FIT = [
    "--config",
    RECIPE,
    "--model.model_args",
    SIZES,
    "--data.img_size",
    "16",
    "--data.batch_size",
    "32",
    "--model.ema_decay",
    "0.9",
    *STILL,
]
FIT += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.precision", "64-true", "--seed_everything", "0"]
FIT += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1", "--trainer.logger", "false"]


def weights(root: Path) -> dict[str, Tensor]:
    path = newest_checkpoint(root / "flatten_deit_tiny_patch16_224")
    assert path is not None
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train("fit", [*FIT, "--trainer.limit_train_batches", "8", "--trainer.default_root_dir", str(folder)])
    return folder


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[k] - second[k]).abs().max() / first[k].abs().max().clamp_min(1e-30)) for k in first)


def test_two_processes_come_to_the_weights_of_one(reference: Path, tmp_path: Path) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.limit_train_batches", "8"]
    command = [sys.executable, "-m", "flatten_transformer", "fit", *FIT, *two, "--trainer.default_root_dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Starting with 2 processes" in done.stderr
    assert largest_difference(weights(reference), weights(tmp_path)) < 1e-13  # measured: 1.9e-15
    assert [path.name for path in (tmp_path / "flatten_deit_tiny_patch16_224").iterdir()] == ["version_0"]


def test_gradients_gathered_in_pieces_come_to_the_same_weights(reference: Path, tmp_path: Path) -> None:
    pieces = ["--data.device_batch_size", "8", "--trainer.limit_train_batches", "32"]
    cli = train("fit", [*FIT, *pieces, "--trainer.default_root_dir", str(tmp_path)])
    assert cli.trainer.accumulate_grad_batches == 4
    assert cli.trainer.global_step == 16
    assert largest_difference(weights(reference), weights(tmp_path)) < 1e-13  # measured: 1.6e-15


def test_accumulation_is_not_said_twice() -> None:
    with pytest.raises(ValueError, match=r"accumulate_grad_batches follows from the data: leave it out; data.batch_size"):
        TrainingCLI("fit", [*FIT, "--trainer.accumulate_grad_batches", "2"])
