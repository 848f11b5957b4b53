"""How long a training step of the study takes: all kinds of steps in turn, so that their ratios are stable."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]  # ships no annotations

from benchmarks.linearize.report import STAGES as STAGE_NAMES
from benchmarks.linearize.report import TEACHER
from benchmarks.linearize.trainings import BY_LABELS, DEPTH, RECIPE, STAGES, STUDENTS
from flatten_transformer.benchmark.machine import describe
from flatten_transformer.benchmark.timing import Run, Spread, interleave, wall_clock
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.tasks.distillation.task import DistillationTask
from flatten_transformer.tasks.model_file import ModelInfo, save_model
from flatten_transformer.training.recipes import find_recipe

_CLASSES, _SIDE_PX, _IMAGES = 10, 28, 54_000  # of Fashion-MNIST, a tenth of which is held out
_BATCH = 32  # images a step
_LINEAR = "focused by labels"  # a step of a linear model, trained by labels


def measure(budget_s: float) -> dict[str, Any]:
    """Return the median microseconds of each kind of step, without the optimizer, by name and stage.

    Args:
        budget_s: About how many seconds to spend.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to `self.log")  # these steps have no trainer
        runs = _runs(Path(folder) / "model.safetensors")
        rounds = interleave(runs, wall_clock, budget_s=budget_s)
    medians_us = {name: Spread.of([times[name] for times in rounds]).median for name in runs}
    return {"median_us": medians_us, "rounds": len(rounds), "header": describe(torch.device("cpu"))}


def _runs(file: Path) -> dict[str, Run]:
    recipe = yaml.safe_load(find_recipe(RECIPE).read_text("utf-8"))["model"]
    name, args = recipe["name"], {**recipe["model_args"], "depth": DEPTH}
    softmax = {**args, "attn_types": "S"}
    info = ModelInfo(name, softmax, list("0123456789"), Preprocessing(_SIDE_PX, 1, (0.5,), (0.5,), 1.0))
    save_model(file, info.build(), info)
    shape: Any = {"num_classes": _CLASSES, "in_chans": 1}
    tasks: dict[str, ClassificationTask] = {
        TEACHER: ClassificationTask(name, softmax, label_smoothing=recipe["label_smoothing"], **shape),
        _LINEAR: ClassificationTask(name, args, label_smoothing=recipe["label_smoothing"], **shape),
    }
    for student, options in STUDENTS.items():
        form = {"attention": "focused", **options, "keep": list(range(options.get("keep", 0)))}
        given: Any = {"model_args": {**softmax, "linearize": form}, "pretrained": file, **shape}
        tasks |= {f"{student}, stage {stage}": DistillationTask(name, **given, stage=stage) for stage in (1, 2, 3)}
    return {key: _run(task) for key, task in tasks.items()}


def _run(task: ClassificationTask) -> Run:
    """Return a run of training steps."""
    images, labels = torch.randn(2, _BATCH, 1, _SIDE_PX, _SIDE_PX), torch.arange(_BATCH) % _CLASSES
    task.train()

    def step(turn: int) -> list[torch.Tensor]:
        task.zero_grad()
        loss = task.training_step((images[turn % 2], labels, labels), turn)
        loss.backward()
        return [loss.detach()]

    return Run(step)


def shares_of_time(medians_us: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the time of all steps of each name until the end of each stage, in percent of the teacher's training.

    Args:
        medians_us: Of :func:`measure`; students that are not among them have no time.
    """
    whole = _steps(TEACHER) * medians_us[TEACHER]
    shares = {}
    for student in (name for name in STUDENTS if f"{name}, stage 1" in medians_us):
        times, shares[student] = 0.0, dict[str, float]()
        for stage, name in zip(STAGES, STAGE_NAMES, strict=True):
            times += STAGES[stage]["trainer.limit_train_batches"] * medians_us[f"{student}, stage {stage}"]
            shares[student][name] = 100 * times / whole
    for name in BY_LABELS:
        step = TEACHER if name.startswith(TEACHER) else _LINEAR
        shares[name] = {STAGE_NAMES[-1]: 100 * _steps(name) * medians_us[step] / whole}
    return shares


def _steps(name: str) -> int:
    """Return the number of steps of a training by labels."""
    options = BY_LABELS[name]
    epochs = options.get("trainer.max_epochs", yaml.safe_load(find_recipe(RECIPE).read_text("utf-8"))["trainer"]["max_epochs"])
    return int(epochs) * int(options.get("trainer.limit_train_batches", -(-_IMAGES // _BATCH)))
