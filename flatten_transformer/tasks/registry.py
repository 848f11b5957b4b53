"""The tasks by name; nothing of one is loaded before it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from flatten_transformer.data.module import DataModule
    from flatten_transformer.tasks.task import Task

TaskName = Literal["classify", "detect", "segment"]
TASKS: dict[TaskName, str] = {"classify": "classification", "detect": "detection", "segment": "segmentation"}  # their folders


class TaskSpec(NamedTuple):
    """The parts of a task; the module ``spec`` in its folder holds one."""

    task: type[Task]
    data: type[DataModule]
    build: Callable[[str, dict[str, Any], int, int], nn.Module]  # of name, model_args, num_classes and in_chans
    preprocessing: type[Any]  # a dataclass: what is done to an image first
    monitor: str  # the metric whose best checkpoint is kept, the higher the better
    does: str  # what a model of it does, in words
    options: tuple[str, ...]  # of `flatten predict` that have a meaning for it alone
    predict: Callable[..., None]  # of a model, its info, files and these options


def task_spec(kind: TaskName) -> TaskSpec:
    """Return the parts of a task.

    Example:
        >>> task_spec("classify").monitor
        'val/accuracy'
    """
    spec: TaskSpec = import_module(f"flatten_transformer.tasks.{TASKS[kind]}.spec").spec
    return spec
