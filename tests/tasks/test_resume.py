"""What a training comes to does not depend on kills, and its files survive them."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flatten_transformer.cli import main
from tests.runs import RECIPE, newest_checkpoint

ROOT = Path(__file__).parents[2]
NAME = "flatten_deit_tiny_patch16_224"
SHORT = [
    *("--config", RECIPE),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "false"),
]

QUICK = ["--trainer.limit_val_batches", "1", "--trainer.logger", "false"]  # which draws no pictures either


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(runs: Path) -> dict[str, Tensor]:
    path = newest_checkpoint(runs)
    assert path is not None
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return tensors


def test_a_training_killed_three_times_ends_with_the_very_weights_of_an_undisturbed_one() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.tasks.killed_training", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (done.stdout + done.stderr).count("Going on from") == 3
    assert (done.stdout + done.stderr).count("The training was ended by SIGTERM") == 1
    undisturbed, killed = weights(Path("undisturbed") / NAME), weights(Path("killed") / NAME)
    assert undisturbed.keys() == killed.keys()
    assert any(name.startswith("ema.") for name in killed)
    assert [name for name, tensor in undisturbed.items() if not torch.equal(tensor, killed[name])] == []


def test_the_last_checkpoint_is_of_the_last_epoch_even_if_the_first_was_the_best() -> None:
    options = ["--checkpoint.monitor", "lr", "--checkpoint.mode", "min", "--model.optim.warmup_epochs", "3"]
    assert main(["fit", *SHORT, *options, "--trainer.max_epochs", "3"]) == 0
    folder = Path("runs") / NAME / "version_0" / "checkpoints"
    assert {path.name for path in folder.glob("*.ckpt")} == {"best-epoch=0.ckpt", "last.ckpt"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 2


def test_last_begins_anew_where_there_is_nothing_yet(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert main(["fit", *SHORT, *QUICK, "--ckpt_path", "last"]) == 0
        assert f"There is no checkpoint of runs/{NAME}/version_* yet: from the beginning" in caplog.text
        assert main(["test", *SHORT, "--ckpt_path", "last"]) == 0
        assert f"Judging runs/{NAME}/version_0/checkpoints/last.ckpt" in caplog.text


def test_last_is_an_error_where_there_is_nothing_to_judge(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *SHORT, "--ckpt_path", "last"]) == 2
    assert f"no last.ckpt of runs/{NAME}/version_*: train first" in capfd.readouterr().err


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_last_checkpoint_whole(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    to_disk: Callable[[int], None] = os.fsync

    def full(file: int) -> None:
        if newest_checkpoint(Path("runs") / NAME) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        to_disk(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["fit", *SHORT, *QUICK]) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("flatten: error: [Errno 28] No space left on device")
    folder = Path("runs") / NAME / "version_0" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best-epoch=0.ckpt", "last.ckpt", "model.safetensors"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0
