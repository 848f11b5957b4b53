"""The trainings of the study: teachers, their students, and what is trained by labels alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]  # ships no annotations
from torch import Tensor

from benchmarks.linearize.report import TEACHER
from benchmarks.studies import Result, file_of
from flatten_transformer.benchmark.linearized import Batches, judge
from flatten_transformer.benchmark.machine import describe
from flatten_transformer.commands.linearize_student import TestImages, stage_options, with_numbers
from flatten_transformer.commands.linearize_teacher import Images, find_teacher
from flatten_transformer.linearize import linearize
from flatten_transformer.tasks.model_file import load_model, save_model
from flatten_transformer.training.cli import train
from flatten_transformer.training.recipes import find_recipe
from flatten_transformer.utils.atomic_file import write_atomically

RECIPE = "fashion_mnist/study"  # of the teacher, and of what is trained by labels alone
IMAGES = Images(dataset="torch/fashion_mnist", val_share=0.1, batch_size=32)
TRAINED_ON, TEACHER_ON, TWIN = "focused trained on", "softmax trained on", "focused from scratch"
BY_LABELS: dict[str, dict[str, Any]] = {  # options of the recipe, by the name in the table
    TEACHER: {"model.model_args.attn_types": "S"},
    TRAINED_ON: {"model.optim.lr": 1.0e-3, "trainer.max_epochs": 1, "trainer.limit_train_batches": 844},
    TEACHER_ON: {"model.optim.lr": 1.0e-3, "trainer.max_epochs": 1, "trainer.limit_train_batches": 844},
    TWIN: {"trainer.max_epochs": 3, "trainer.limit_train_batches": 1420},  # no longer than what is trained on
}
BEFORE = {TRAINED_ON: "focused", TEACHER_ON: TEACHER}
DEPTH = 4
_LABELS = {"model.model_args.depth": DEPTH, "trainer.precision": "32-true"}
STUDENTS: dict[str, dict[str, Any]] = {  # options of `linearize`, by the name in the table
    "focused": {},
    "relu": {"attention": "relu"},
    "enhanced": {"attention": "enhanced"},
    "inline": {"attention": "inline"},
    "polaformer": {"attention": "polaformer"},
    "focused keeping 1": {"keep": 1},
    "focused keeping 2": {"keep": 2},
    "focused centred": {"center_keys": True},
    "relu centred": {"attention": "relu", "center_keys": True},
    "enhanced centred": {"attention": "enhanced", "center_keys": True},
    "focused convolving queries and keys": {"convolve_queries_keys": True},
    "focused beside a window": {"local_window": 3},
    "focused from random weights": {},
}
_RANDOM = "focused from random weights"
STAGES: dict[int, dict[str, Any]] = {  # of the recipes linearize/stage1 to stage3; tried on the validation images of seed 100
    1: {"trainer.limit_train_batches": 200, "model.optim.lr": 1.0e-2},
    2: {"trainer.limit_train_batches": 50, "model.optim.lr": 1.0e-3},
    3: {"trainer.limit_train_batches": 50, "model.optim.lr": 3.0e-4},
}
_ATTENTION_BATCHES = 32  # of test images, that each attention is judged on
_STAGES = {  # of all stages: images as the teacher's, and one short epoch
    "trainer.max_epochs": 1,
    "trainer.limit_val_batches": 10,
    "data.augmentation": {"scale": [0.95, 1.0], "ratio": [0.95, 1.05], "hflip": 0.5},
}
NAMES = (TEACHER, *STUDENTS, TRAINED_ON, TEACHER_ON, TWIN)


def origin(name: str) -> dict[str, Any]:
    """Return what the results of a name depend on besides seed and code."""
    recipe = {"recipe": yaml.safe_load(find_recipe(RECIPE).read_text("utf-8")), "options": {**_LABELS, **BY_LABELS[TEACHER]}}
    if name == TEACHER:
        return recipe
    stages = {f"stage {stage}": {**options, **_STAGES} for stage, options in STAGES.items()}
    if name in STUDENTS:
        return {"teacher": recipe, "form": STUDENTS[name], **stages}
    return {"teacher": recipe, **(stages if name == TRAINED_ON else {}), "options": BY_LABELS[name]}


def run(name: str, seed: int) -> Result:
    """Train and judge what has this name."""
    return distil(name, seed) if name in STUDENTS else train_by_labels(name, seed)


def folder_of(name: str, seed: int) -> Path:
    """Return the folder of the trainings of one run."""
    return Path("runs/linearize_study") / file_of(Path(), seed, name).stem


def weights_of(name: str, seed: int) -> Path:
    """Return the model file of a run that another begins with."""
    file = folder_of(name, seed) / (f"stage{max(STAGES)}" if name in STUDENTS else "") / "model.safetensors"
    if not file.exists():
        raise SystemExit(f"no {file}: train {name!r} with seed {seed} on this machine first")
    return file


def fit(recipe: str, options: Sequence[str], seed: int, folder: Path) -> Path:
    """Train by a recipe, or go on with it, or take what is done; return the model file."""
    file = folder / "model.safetensors"
    if not file.exists():
        fixed = ["--config", recipe, "--seed_everything", str(seed), "--ckpt_path", "last"]
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        train("fit", [*fixed, *quiet, "--trainer.default_root_dir", str(folder), *options])
        newest = max(folder.rglob("checkpoints/model.safetensors"), key=lambda path: path.stat().st_mtime)
        write_atomically(file, newest.read_bytes())
    return file


def as_arguments(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield options of ``flatten fit``."""
    return (f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items())


def train_by_labels(name: str, seed: int) -> Result:
    """Train a classifier by the recipe, and test it."""
    options = {"model.model_args.attn_types": "L", **_LABELS, **BY_LABELS[name]}
    if name in BEFORE:
        before = weights_of(BEFORE[name], seed)
        _, info = load_model(before)
        options = {**BY_LABELS[name], "trainer.precision": "32-true"}
        options["model.model_args"] = {**info.model_args, "checkpoint_path": str(before)}
    trained = fit(RECIPE, list(as_arguments(options)), seed, folder_of(name, seed))
    accuracy = accuracy_of(trained, test_images(weights_of(TEACHER, seed)))
    return {"name": name, "seed": seed, "accuracy": accuracy, "header": machine()}


def test_images(teacher: Path) -> TestImages:
    """Return the test images as this teacher sees them."""
    return TestImages(find_teacher(None, teacher, {}, IMAGES, None).data(IMAGES))


@torch.no_grad()
def accuracy_of(file: Path, images: TestImages) -> float:
    """Return the share of the images whose class a model finds."""
    model, _ = load_model(file)
    hits = [model(pixels).argmax(1) == labels for pixels, labels in images]
    return float(torch.cat(hits).float().mean())


def distil(name: str, seed: int) -> Result:
    """Turn the teacher of this seed linear in three stages, and judge the student after each on the test images."""
    weights = weights_of(TEACHER, seed)
    teacher = find_teacher(None, weights, {}, IMAGES, None)
    softmax, images = teacher.build(), teacher.data(IMAGES)
    form = with_numbers({"attention": "focused", "keep": 0, **STUDENTS[name]}, softmax, images)
    torch.manual_seed(seed)
    before = random_student(weights, form, folder_of(name, seed)) if name == _RANDOM else None
    students = {"untrained": linearize(softmax, **form) if before is None else load_model(before)[0]}
    for stage, options in STAGES.items():
        arguments = [*stage_options(teacher, IMAGES, form, before), *as_arguments({**_STAGES, **options})]
        before = fit(f"linearize/stage{stage}", arguments, seed, folder_of(name, seed) / f"stage{stage}")
        students[f"stage {stage}"], _ = load_model(before)
    stages = {of: asdict(judged) for of, judged in judge(softmax, students, TestImages(images), blocks=False).items()}
    for of, judged in judge(softmax, students, First(_ATTENTION_BATCHES, TestImages(images))).items():
        stages[of]["blocks"] = judged.blocks
    return {"name": name, "seed": seed, "form": form, "stages": stages, "header": machine()}


class First:
    """The first batches of images.

    Args:
        count: How many, at most.
        batches: All of them.
    """

    def __init__(self, count: int, batches: Batches) -> None:
        self.count, self.batches = min(count, len(batches)), batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Iterate."""
        return islice(iter(self.batches), self.count)


def random_student(teacher: Path, form: Mapping[str, Any], folder: Path) -> Path:
    """Return the file of a student that has copied nothing."""
    _, info = load_model(teacher)
    info = replace(info, model_args={**info.model_args, "linearize": form})
    save_model(folder / "random.safetensors", info.build(), info)
    return folder / "random.safetensors"


def machine() -> dict[str, Any]:
    """Return what ran this."""
    return describe(torch.device("cpu"))
