"""The student of `flatten linearize`: which blocks it keeps, how a stage trains it, what it is judged on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flatten_transformer.commands.linearize_teacher import Images, Teacher
from flatten_transformer.linearize import linearize, softmax_attentions
from flatten_transformer.linearize.forms import is_linear
from flatten_transformer.tasks.distillation.data import DistillationData

_CALIBRATION = 32  # images that choose the blocks to keep


def with_numbers(form: Mapping[str, Any], softmax: nn.Module, images: DistillationData) -> dict[str, Any]:
    """Return the arguments of :func:`linearize` with the blocks that stay softmax by their numbers.

    Args:
        form: The arguments; ``keep`` may be a number or ``"auto"``, which validation images decide.
        softmax: The teacher.
        images: Where the validation images come from.
    """
    if isinstance(form["keep"], list):
        return dict(form)
    batch: Tensor = next(iter(images.val_dataloader()))[0][:_CALIBRATION]
    student = linearize(softmax, **form, images=batch)
    names = softmax_attentions(softmax)
    return {**form, "keep": [index for index, name in enumerate(names) if not is_linear(student.get_submodule(name))]}


def stage_options(teacher: Teacher, images: Images, form: Mapping[str, Any], before: Path | None) -> list[str]:
    """Return the options of ``flatten fit`` for a stage.

    Args:
        teacher: The softmax model.
        images: What to learn from.
        form: The arguments of :func:`linearize`, with numbers.
        before: File of the student to begin with; None: a copy of the teacher.
    """
    args = {**teacher.model_args, "linearize": form}
    if before is not None:
        args["checkpoint_path"] = str(before)
    values: dict[str, Any] = {"model.name": teacher.name, "model.model_args": args, "model.pretrained": str(teacher.weights)}
    values |= {f"data.{name}": value for name, value in teacher.data_options(images).items()}
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]


class TestImages:
    """Batches of test images, or validation images where there are none, with labels where there are some.

    Args:
        images: The data.
    """

    __test__ = False  # no class of tests

    def __init__(self, images: DistillationData) -> None:
        self.labelled, self.loader = images.labelled, images.test_dataloader()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Iterate."""
        for pixels, labels, _ in self.loader:
            yield pixels, labels if self.labelled else None
