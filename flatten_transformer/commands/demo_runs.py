"""Trainings of the demos, and their test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from flatten_transformer.commands.trainings import trained
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.run_record import RunRecord
from flatten_transformer.utils.stopping import telling_what_is_kept

_NAME = "demo"  # of the runs


class Run(NamedTuple):
    """A trained model and its test metrics."""

    task: Any
    data: Any
    model_file: Path
    metrics: Mapping[str, float]
    training_s: float | None  # None if it was stopped on the way: the time of what was lost is not known

    @property
    def model(self) -> Any:
        """The model that was tested and saved."""
        return self.task.final_model

    @property
    def training_time(self) -> str:
        """The time of the training for a table, blank where it is not known."""
        return "" if self.training_s is None else f"{self.training_s:.0f} s"


def run_recipes(console: Console, recipes: Mapping[str, str], max_epochs: int | None, *, resume: bool) -> dict[str, Run]:
    """Train by recipes, one after the other, and test the results; stderr says what an earlier start has done of it.

    Args:
        console: Gets a rule with the number and the command of each.
        recipes: Names of the recipes by display name.
        max_epochs: Epochs instead of the recipes'.
        resume: Go on after an earlier start with the same options, versions and code; else train anew.

    Raises:
        KeyboardInterrupt: On a signal; its message says what is kept and how to go on.
    """
    runs: dict[str, Run] = {}
    options = [] if max_epochs is None else [f"--trainer.max_epochs={max_epochs}"]
    with telling_what_is_kept(lambda: _kept(list(runs.values()), len(recipes), resume)):
        for name, recipe in recipes.items():
            console.rule(f"{len(runs) + 1} of {len(recipes)}: {name}: flatten fit --config {recipe} --name {_NAME}")
            runs[name] = judge(trained(recipe, options, name=_NAME, resume=resume))
    return runs


def _kept(runs: Sequence[Run], count: int, resume: bool) -> str:
    files = "".join(f", {run.model_file}" for run in runs)
    command = "the same command" if resume else "the same command without --resume false"
    return f"{len(runs)} of {count} trainings are done{files}; {command} goes on from there"


def judge(folder: Path) -> Run:
    """Test the best epoch of a finished run.

    Args:
        folder: Folder of the run.
    """
    with without_lightning_noise():
        cli = TrainingCLI("test", ["--config", str(folder / "config.yaml"), "--ckpt_path", "best"])
        best = cli.config.ckpt_path  # whose weights model.safetensors holds
        (metrics,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path=best, verbose=False, weights_only=True)
    record = RunRecord(folder)
    seconds = None if record.config.get("ckpt_path") else record.seconds
    return Run(cli.model.eval(), cli.datamodule, folder / "checkpoints" / "model.safetensors", metrics, seconds)
