"""`flatten linearize`: turn a pretrained softmax Transformer into a linear one, by distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import nn

from flatten_transformer.benchmark import linearized_report
from flatten_transformer.benchmark.linearized import judge
from flatten_transformer.benchmark.linearized_times import SIZES_PX, measure_times
from flatten_transformer.benchmark.machine import describe
from flatten_transformer.commands.linearize_student import TestImages, stage_options, with_numbers
from flatten_transformer.commands.linearize_teacher import Images, find_teacher
from flatten_transformer.commands.trainings import trained
from flatten_transformer.linearize import linearize as make_linear
from flatten_transformer.linearize import softmax_attentions
from flatten_transformer.linearize.build import check_options
from flatten_transformer.tasks.distillation.data import DistillationData
from flatten_transformer.tasks.model_file import load_model
from flatten_transformer.utils.stopping import telling_what_is_kept

_LARGE = 128  # pixels


def linearize(
    model: str | None = None,
    weights: Path | None = None,
    model_args: dict[str, Any] | None = None,
    data: Images = Images(),  # noqa: B008  # frozen
    attention: str = "focused",
    keep: int | list[int] | Literal["auto"] = 0,
    options: dict[str, Any] | None = None,
    img_size: int | None = None,
    stages: int | None = None,
    epochs: list[int] | None = None,
    seed: int = 0,
    name: str | None = None,
    sizes: list[int] | None = None,
    resume: bool = True,
) -> None:
    """Turn a pretrained softmax Transformer into a linear one: copy all weights, distil in stages, report what is lost and won.

    Stage 1 fits each attention to the teacher's, stage 2 the whole model to its outputs, both without labels; stage 3 learns the
    labels. They are the recipes linearize/stage1 to stage3, whose runs hold the students.

    Args:
        model: timm name of the teacher; unnecessary with the model.safetensors of a training.
        weights: The teacher's file; by default its published weights.
        model_args: Further arguments of timm's model.
        data: Images to learn from.
        attention: Linear attention, such as focused, relu or enhanced.
        keep: Blocks that stay softmax: how many, their numbers from 0, or auto, a quarter of them; chosen by their errors.
        options: Further options of the linear form, such as {center_keys: true, attention_args: {kernel_size: 3}}.
        img_size: Side of the images in pixels, instead of the teacher's own; position encodings are resized.
        stages: 1, 2 or 3; by default 3 with labels, else 2.
        epochs: Epochs of each stage, instead of the recipes'.
        seed: Seed of all stages.
        name: Name of the runs; by default that of model and attention.
        sizes: Sides of the images that teacher and student are timed on, by default 224 to 1,024, or once, twice and four times
            that of a teacher of small images; an empty list times nothing.
        resume: Take stages that an earlier start with the same options has finished, and go on with one that was stopped.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If the model has no softmax attention, the weights do not fit, or an option is out of range.
    """
    check_options(options or {}, beside=("attention", "keep"))
    if sizes is not None and min(sizes, default=1) < 1:
        raise ValueError(f"--sizes must hold sides in pixels, such as [224, 512], or nothing, [], got {sizes}")
    teacher = find_teacher(model, weights, model_args or {}, data, img_size)
    images = teacher.data(data)
    last = _stages(stages, images, epochs)
    softmax = teacher.build()
    form = with_numbers({"attention": attention, **(options or {}), "keep": keep}, softmax, images)
    torch.manual_seed(seed)
    untrained = make_linear(softmax, **form)
    name = name or f"{teacher.name}_{attention}"
    console = Console()
    folders: list[Path] = []
    with telling_what_is_kept(lambda: _kept(folders, last)):
        for stage in range(1, last + 1):
            console.rule(f"stage {stage} of {last}")
            before = folders[-1] / "checkpoints" / "model.safetensors" if folders else None
            given = [*stage_options(teacher, data, form, before), f"--seed_everything={seed}"]
            if epochs is not None:
                given.append(f"--trainer.max_epochs={epochs[stage - 1]}")
            files = [file for file in (weights, before) if file is not None]
            folders.append(trained(f"linearize/stage{stage}", given, name=name, files=files, resume=resume))
        students = {f"stage {number}": _student(folder) for number, folder in enumerate(folders, 1)}
        models = {"untrained": untrained, **students}
        report = _judged(teacher.name, softmax, models, images)
        if not (folders[-1] / "report.json").exists():  # kept before the times, which take longest; never in place of times
            linearized_report.write(report, folders[-1])
        sizes = list(_sizes(teacher.preprocessing.img_size)) if sizes is None else sizes
        if sizes:
            report = replace(report, times=measure_times(softmax, students[f"stage {last}"], sizes, name=teacher.name))
            linearized_report.write(report, folders[-1])
    for table in linearized_report.tables(report):
        console.print(table)
    file = folders[-1] / "checkpoints" / "model.safetensors"
    console.print(f"See {folders[-1] / 'report.md'}, with pictures beside it", soft_wrap=True, highlight=False)
    console.print(f"Use {file}: flatten predict IMAGE --checkpoint {file}", soft_wrap=True, highlight=False)


def _stages(stages: int | None, images: DistillationData, epochs: list[int] | None) -> int:
    last = (3 if images.labelled else 2) if stages is None else stages
    if last not in (1, 2, 3):
        raise ValueError(f"--stages must be 1, 2 or 3, got {stages}")
    if last == 3 and not images.labelled:
        raise ValueError("stage 3 learns from labels, and these images have none: give --data.dataset folder, or --stages 2")
    if epochs is not None and (len(epochs) != last or min(epochs) < 1):
        raise ValueError(f"--epochs must hold a positive number for each of {last} stages, such as {[1] * last}, got {epochs}")
    return last


def _kept(folders: list[Path], last: int) -> str:
    files = "".join(f", {folder / 'checkpoints' / 'model.safetensors'}" for folder in folders)
    return f"{len(folders)} of {last} stages are done{files}; the same command goes on from there"


def _student(folder: Path) -> nn.Module:
    model, _ = load_model(folder / "checkpoints" / "model.safetensors")
    return model


def _sizes(img_size: int) -> Sequence[int]:
    """Return the sizes that a teacher of small images is timed on: one of 1,024 pixels would be far beyond it."""
    return SIZES_PX if img_size >= _LARGE else (img_size, 2 * img_size, 4 * img_size)


def _judged(
    name: str, teacher: nn.Module, students: Mapping[str, nn.Module], images: DistillationData
) -> linearized_report.Linearized:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for part in (teacher, *students.values()):
        part.to(device)
    judged = judge(teacher, students, TestImages(images))
    split = "test" if images.has_test_images else "validation"
    return linearized_report.Linearized(describe(device), name, softmax_attentions(teacher), judged, split)
