"""Tasks by name, imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from flatten_transformer.utils.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from flatten_transformer.data.module import DataModule
    from flatten_transformer.tasks.task import Task

TaskName = str  # of TASKS, or registered
TASKS: dict[TaskName, str] = {
    "classify": "classification",
    "detect": "detection",
    "segment": "segmentation",
    "distill": "distillation",
}  # name: folder
_own: dict[TaskName, TaskSpec] = {}


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

    Raises:
        ValueError: If there is no such task.

    Example:
        >>> task_spec("classify").monitor
        'val/accuracy'
    """
    check_task(name)
    if name in _own:
        return _own[name]
    spec: TaskSpec = import_module(f"flatten_transformer.tasks.{TASKS[name]}.spec").spec
    return spec


def register_task(name: TaskName, spec: TaskSpec) -> None:
    """Make a task of one's own known to recipes (``task: <name>``), ``flatten fit`` and ``flatten predict``.

    Args:
        name: Its name, also the ``task_name`` of ``spec.task``.
        spec: Its components.

    Raises:
        ValueError: If the name is taken by another task.

    Example:
        >>> register_task("look", task_spec("classify"))
        >>> task_spec("look").monitor
        'val/accuracy'
    """
    if name in TASKS or _own.get(name, spec) != spec:
        raise ValueError(f"there is a task {name!r} already: choose another name")
    _own[name] = spec


def check_task(name: object) -> None:
    """Raise ValueError if there is no such task."""
    names = [*TASKS, *_own]
    if name not in names:
        raise ValueError(f"no task {name!r}: {did_you_mean(str(name), names)}")
