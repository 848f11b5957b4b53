"""A training that a signal ends has saved, and goes on with the numbers of one that was left alone."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatten_transformer.cli import main
from flatten_transformer.training.cli import train
from flatten_transformer.training.history import History
from tests.runs import RECIPE, newest_checkpoint

NAME = "flatten_deit_tiny_patch16_224"
MODEL = "{img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2, drop_path_rate: 0.2, proj_drop_rate: 0.1}"
FIT = [
    *("--config", RECIPE),
    *("--model.model_args", MODEL, "--model.ema_decay", "0.9", "--model.mixing.mixup_alpha", "0.8"),
    *("--data.img_size", "16", "--data.augmentation.auto_augment", "rand-m5-n1", "--seed_everything", "0"),
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "4"),
    *("--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    *("--data.batch_size", "16", "--data.device_batch_size", "8"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(root: Path) -> dict[str, Tensor]:
    path = newest_checkpoint(root / NAME)
    assert path is not None
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return tensors


def signal_at(monkeypatch: pytest.MonkeyPatch, number: int, epoch: int, batch: int) -> None:
    """Send this process a signal behind a batch, once."""
    genuine = History.on_train_batch_end
    sent: list[int] = []

    def send(self: History, trainer: Any, *args: Any) -> None:
        genuine(self, trainer, *args)
        if (trainer.current_epoch, args[-1]) == (epoch, batch) and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(History, "on_train_batch_end", send)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train("fit", [*FIT, "--trainer.default_root_dir", str(folder)])
    return weights(folder)


@pytest.mark.parametrize(
    ("name", "epoch", "batch", "when"),
    [
        ("SIGTERM", 0, 0, "in epoch 1 after 2 of 4 batches"),  # the first step takes two
        ("SIGINT", 0, 3, "before epoch 2"),
    ],
)
def test_it_goes_on_where_it_was(
    name: str,
    epoch: int,
    batch: int,
    when: str,
    undisturbed: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        signal_at(patch, number, epoch, batch)
        with pytest.raises(SystemExit) as left:
            main(["fit", *FIT])
    assert left.value.code == 128 + number
    assert signal.getsignal(number) is before
    last = Path("runs") / NAME / "version_0" / "checkpoints" / "last.ckpt"
    assert f"The training was ended by {name} {when}; {last} holds its state: go on with --ckpt_path last" in caplog.text
    train("fit", [*FIT, "--ckpt_path", "last"])
    resumed = weights(Path("runs"))
    assert [name for name, tensor in undisturbed.items() if not torch.equal(tensor, resumed[name])] == []
