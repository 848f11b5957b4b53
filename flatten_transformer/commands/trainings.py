"""Trainings of commands: what an earlier start has finished is taken, and what was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flatten_transformer.benchmark.machine import code
from flatten_transformer.training.checkpoints import choose_checkpoint
from flatten_transformer.training.cli import train
from flatten_transformer.training.recipes import find_recipe
from flatten_transformer.training.run_folder import folder_of_recipe, runs_of
from flatten_transformer.training.run_record import RunRecord
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.progress import note

_ORIGINS = Path("runs/origins.json")


def trained(recipe: str, options: Sequence[str], *, name: str, files: Sequence[Path] = (), resume: bool) -> Path:
    """Return the folder of a finished run of a recipe: of an earlier start, or trained now.

    Args:
        recipe: Name of the recipe.
        options: Options of ``flatten fit``.
        name: Name of the run.
        files: Files among the options, whose content decides, too, what a training comes to.
        resume: Go on after an earlier start with the same options, files, versions and code; else train anew.
    """
    begin: list[str] = []
    for folder in _earlier(recipe, name, _origin(recipe, options, files), resume):
        state, checkpoints = RunRecord(folder).state, folder / "checkpoints"
        if state == "done" and (checkpoints / "model.safetensors").is_file():
            note(f"{folder} is trained already; --resume false trains anew, into another folder")
            return folder
        last = choose_checkpoint([checkpoints], resume=True).path if state == "stopped" else None
        if last is not None:
            note(f"{folder} was stopped: going on from {last}")
            begin = ["--ckpt_path", str(last)]
            break
    fixed = ["--config", recipe, "--name", name, "--trainer.enable_model_summary=false"]
    run = train("fit", [*fixed, *options, *begin]).folder
    assert run is not None
    return run


def _earlier(recipe: str, name: str, origin: Mapping[str, Any], resume: bool) -> list[Path]:
    """Return the runs that earlier starts of the same origin have begun, newest first; others are left alone from now on.

    ``runs/origins.json`` holds the origin for each recipe and name, and the names of the runs of others.
    """
    path, known, key = find_recipe(recipe), _read(), f"{recipe} {name}"
    present = runs_of(folder_of_recipe(path, _ORIGINS.parent), name)
    before = known.get(key, {"origin": {}, "others": []})
    difference = next((what for what, value in origin.items() if before["origin"].get(what) != value), None)
    if resume and difference is None:
        return [folder for folder in present if folder.name not in before["others"]]
    if present:
        note(f"{present[0]} is left alone ({f'{difference} differs' if resume else 'resume is false'}): training anew")
    known[key] = {"origin": origin, "others": [folder.name for folder in present]}
    write_atomically(_ORIGINS, json.dumps(known, indent=1).encode())
    return []


def _origin(recipe: str, options: Sequence[str], files: Sequence[Path]) -> dict[str, Any]:
    """Return what decides what a training comes to."""
    return {
        "command": list(options),
        "recipe": _digest(find_recipe(recipe)),
        "files": [_digest(file) for file in files],
        "code": code(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "timm", "lightning")},
        "threads": torch.get_num_threads(),
        "flatten_backend": os.environ.get("FLATTEN_BACKEND"),
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read() -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(_ORIGINS.read_text("utf-8"))
        return {recipe: {"origin": dict(each["origin"]), "others": list(each["others"])} for recipe, each in known.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
