"""Tasks by name, imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from flatten_transformer.data.module import DataModule
    from flatten_transformer.tasks.task import Task

TaskName = Literal["classify", "detect", "segment"]
TASKS: dict[TaskName, str] = {"classify": "classification", "detect": "detection", "segment": "segmentation"}  # name: folder


class TaskSpec(NamedTuple):
    """Components of a task, assembled in the ``spec`` module of its folder."""

    task: type[Task]
    data: type[DataModule]
    build: Callable[[str, dict[str, Any], int, int], nn.Module]  # from name, model_args, num_classes and in_chans
    preprocessing: type[Any]  # a dataclass
    monitor: str  # metric that selects the best checkpoint; higher is better
    does: str  # verb phrase for messages
    options: tuple[str, ...]  # of `flatten predict` specific to this task
    predict: Callable[..., None]  # from model, info, files and these options


def task_spec(name: TaskName) -> TaskSpec:
    """Return the components of a task.

    Example:
        >>> task_spec("classify").monitor
        'val/accuracy'
    """
    spec: TaskSpec = import_module(f"flatten_transformer.tasks.{TASKS[name]}.spec").spec
    return spec
