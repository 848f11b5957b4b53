"""Trainings of the demos: what an earlier start has finished is taken, and what was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from flatten_transformer.benchmark.machine import code
from flatten_transformer.training.checkpoints import choose_checkpoint
from flatten_transformer.training.cli import TrainingCLI, train
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.recipes import find_recipe
from flatten_transformer.training.run_folder import folder_of_recipe, runs_of
from flatten_transformer.training.run_record import RunRecord
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.progress import note
from flatten_transformer.utils.stopping import telling_what_is_kept

_NAME = "demo"  # of the runs
_ORIGINS = Path("runs/demos.json")


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
    with telling_what_is_kept(lambda: _kept(list(runs.values()), len(recipes), resume)):
        for name, recipe in recipes.items():
            console.rule(f"{len(runs) + 1} of {len(recipes)}: {name}: flatten fit --config {recipe} --name {_NAME}")
            runs[name] = judge(trained(recipe, max_epochs, resume=resume))
    return runs


def _kept(runs: Sequence[Run], count: int, resume: bool) -> str:
    files = "".join(f", {run.model_file}" for run in runs)
    command = "the same command" if resume else "the same command without --resume false"
    return f"{len(runs)} of {count} trainings are done{files}; {command} goes on from there"


def trained(recipe: str, max_epochs: int | None, *, resume: bool) -> Path:
    """Return the folder of a finished run of a recipe: of an earlier start, or trained now.

    Args:
        recipe: Name of the recipe.
        max_epochs: Epochs instead of the recipe's.
        resume: Go on after an earlier start.
    """
    begin: list[str] = []
    for folder in _earlier(recipe, max_epochs, resume):
        state, checkpoints = RunRecord(folder).state, folder / "checkpoints"
        if state == "done" and (checkpoints / "model.safetensors").is_file():
            note(f"{folder} is trained already; --resume false trains anew, into another folder")
            return folder
        last = choose_checkpoint([checkpoints], resume=True).path if state == "stopped" else None
        if last is not None:
            note(f"{folder} was stopped: going on from {last}")
            begin = ["--ckpt_path", str(last)]
            break
    epochs = [] if max_epochs is None else [f"--trainer.max_epochs={max_epochs}"]
    options = ["--config", recipe, "--name", _NAME, "--trainer.enable_model_summary=false", *epochs, *begin]
    run = train("fit", options).folder
    assert run is not None
    return run


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


def _earlier(recipe: str, max_epochs: int | None, resume: bool) -> list[Path]:
    """Return the runs that earlier starts of the same origin have begun, newest first; others are left alone from now on.

    ``runs/demos.json`` holds the origin for each recipe, and the names of the runs of others.
    """
    path, known = find_recipe(recipe), _read()
    present, origin = runs_of(folder_of_recipe(path, _ORIGINS.parent), _NAME), _origin(path, max_epochs)
    before = known.get(recipe, {"origin": {}, "others": []})
    difference = next((name for name, value in origin.items() if before["origin"].get(name) != value), None)
    if resume and difference is None:
        return [folder for folder in present if folder.name not in before["others"]]
    if present:
        note(f"{present[0]} is left alone ({f'{difference} differs' if resume else 'resume is false'}): training anew")
    known[recipe] = {"origin": origin, "others": [folder.name for folder in present]}
    write_atomically(_ORIGINS, json.dumps(known, indent=1).encode())
    return []


def _origin(recipe: Path, max_epochs: int | None) -> dict[str, Any]:
    """Return what decides what a training comes to."""
    return {
        "max_epochs": max_epochs,
        "recipe": hashlib.sha256(recipe.read_bytes()).hexdigest(),
        "code": code(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "timm", "lightning")},
        "threads": torch.get_num_threads(),
        "flatten_backend": os.environ.get("FLATTEN_BACKEND"),
    }


def _read() -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(_ORIGINS.read_text("utf-8"))
        return {recipe: {"origin": dict(each["origin"]), "others": list(each["others"])} for recipe, each in known.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
