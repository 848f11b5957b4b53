"""Train in child processes, one undisturbed, the others killed at random moments and resumed; run by test_resume.py.

Every second one gets SIGTERM, as does its loader, and saves before it ends; the others have no time to.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from flatten_transformer.training.cli import train
from tests.runs import RECIPE

MODEL = "{img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2, drop_path_rate: 0.2, proj_drop_rate: 0.1}"
OPTIONS = [
    *("--config", RECIPE),
    *("--model.model_args", MODEL, "--model.ema_decay", "0.9", "--model.mixing.mixup_alpha", "0.8"),
    *("--data.img_size", "16", "--data.augmentation.auto_augment", "rand-m5-n1", "--data.num_workers", "1"),
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "12", "--trainer.limit_train_batches", "3"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "1", "--seed_everything", "0"),
]


def start(folder: str, *more: str) -> int:
    """Return the process that trains."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # its loaders die with it
        try:
            train("fit", [*OPTIONS, "--trainer.default_root_dir", folder, *more])
        except SystemExit as leave:
            os._exit(int(leave.code or 0))
        os._exit(0)
    return child


def finish(child: int) -> None:
    """Wait for a training that must succeed."""
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"the training ended with status {status}")


def wait_for_checkpoints(count: int) -> None:
    """Wait until the last checkpoint has been written ``count`` times."""
    for _ in range(count):
        before = newest()
        while newest() == before:
            time.sleep(0.002)


def newest() -> float:
    """Return when a checkpoint was last written."""
    return max((path.stat().st_mtime for path in Path("killed").rglob("last.ckpt")), default=0.0)


def main(kills: int) -> None:
    torch.set_num_threads(1)
    finish(start("undisturbed"))
    moments = random.Random(0)
    for number in range(kills):
        child = start("killed", "--ckpt_path", "last")
        wait_for_checkpoints(moments.randint(1, 2))
        time.sleep(moments.uniform(0, 0.1))
        kill = signal.SIGTERM if number % 2 else signal.SIGKILL
        os.killpg(child, kill)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) not in (-signal.SIGKILL, 128 + signal.SIGTERM):
            sys.exit(f"the training ended with status {status} instead of by {kill.name}")
    finish(start("killed", "--ckpt_path", "last"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
