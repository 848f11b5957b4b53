"""Training facts stored in checkpoints, and their comparison with the training that loads one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from flatten_transformer.utils.printable import printable

if TYPE_CHECKING:
    from flatten_transformer.tasks.task import Task

KEY = "flatten_transformer"  # our entry in a checkpoint
Facts = Mapping[str, Any]
_SHOWN = 5  # class names in a message


def facts(task: Task) -> dict[str, Any]:
    """Return the facts of a training, in plain types, from a task with its trainer and data."""
    trainer = task.trainer
    info = task.info()
    values = {
        "task": info.task,
        "model.name": info.name,
        "class_names": list(info.class_names),
        "preprocessing": asdict(info.preprocessing),
        "model.model_args": info.model_args,
        "model.optim": asdict(task.optim),
        "data.batch_size": task.data.batch_size,
        "trainer.max_epochs": trainer.max_epochs,
        "trainer.max_steps": trainer.max_steps,
        "trainer.precision": trainer.precision,
    }
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def compare(kept: Facts | None, here: Facts, *, resume: bool) -> None:
    """Raise ValueError if a checkpoint does not match; print differences that are allowed.

    Args:
        kept: Facts in the checkpoint; None for an older one without any.
        here: Facts of the current training.
        resume: The training resumes from it.
    """
    if kept is None:
        rank_zero_info("The checkpoint does not say which classes it knows, as older ones: not compared with those of the data")
        return
    for name in ("task", "model.name"):
        if kept[name] != here[name]:
            raise ValueError(f"{name} is {kept[name]} in the checkpoint and {here[name]} here: give the recipe it was trained by")
    compare_classes(kept["class_names"], here["class_names"])
    if resume and kept["model.optim"]["opt"] != here["model.optim"]["opt"]:
        raise ValueError(other_optimizer(kept["model.optim"]["opt"], here["model.optim"]["opt"]))
    _print_differences("Note: not as in the training of the checkpoint", kept, here, ("preprocessing", "model.model_args"))
    if resume:
        _print_differences("Note: the training goes on with other settings", kept, here, ("data.batch_size", "trainer.precision"))
        fixed = ("model.optim", "trainer.max_epochs", "trainer.max_steps")
        _print_differences("Note: optimizer and schedule go on as the checkpoint has them", kept, here, fixed)


def compare_classes(kept: Sequence[str], here: Sequence[str]) -> None:
    """Raise ValueError unless two class lists are equal, order included.

    Example:
        >>> compare_classes(["cat", "dog"], ["dog", "cat"])
        Traceback (most recent call last):
        ValueError: the checkpoint has the data's classes in another order (cat, dog and not dog, cat): ...
    """
    if list(kept) == list(here):
        return
    number = next((i for i, (a, b) in enumerate(zip(kept, here, strict=False)) if a != b), min(len(kept), len(here)))
    both = f"{_excerpt(kept, number)} and not {_excerpt(here, number)}"
    what = "the data's classes in another order" if sorted(kept) == sorted(here) else "other classes than the data"
    raise ValueError(
        f"the checkpoint has {what} ({both}): use it with the data it was trained on; for a training on other classes begin "
        "with the weights of its model.safetensors, --model.pretrained"
    )


def other_optimizer(kept: str, here: str) -> str:
    """Return the message for a checkpoint of another optimizer."""
    return (
        f"the checkpoint is of a training by {kept}, and here it is {here}: resume with the same model.optim, or begin anew with "
        "the weights of its model.safetensors, --model.model_args.checkpoint_path"
    )


def compare_groups(kept: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError unless the parameter groups of two optimizers match.

    Args:
        kept: ``param_groups`` of the checkpoint.
        here: ``param_groups`` of the optimizer to resume.
    """
    shapes = [[len(group["params"]) for group in groups] for groups in (kept, here)]
    if shapes[0] != shapes[1]:
        sizes = [f"an optimizer with groups of {', '.join(map(str, shape))} parameters" for shape in shapes]
        raise ValueError(other_optimizer(*sizes))
    missing = sorted({name for a, b in zip(kept, here, strict=True) for name in b.keys() - a.keys()} - {"initial_lr"})
    if missing:
        raise ValueError(other_optimizer(f"an optimizer without {', '.join(missing)}", "one with it"))


def compare_length(kept: Mapping[str, Any], max_epochs: int | None, max_steps: int) -> None:
    """Raise ValueError if a checkpoint is beyond the end of the training.

    Args:
        kept: Checkpoint.
        max_epochs: Limit of the trainer; -1 or None for none.
        max_steps: Limit of the trainer; -1 for none.
    """
    epochs, steps = kept["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"], kept["global_step"]
    for done, limit, name in ((epochs, max_epochs, "epochs"), (steps, max_steps, "steps")):
        if limit is not None and -1 < limit < done:
            raise ValueError(f"the checkpoint has done {done} {name}, and trainer.max_{name} is {limit}: raise it")


def compare_averages(kept: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ValueError if only one of two models has a moving average.

    Args:
        kept: State dict of the checkpoint.
        here: State dict of the task.
    """
    averaged = [any(name.startswith("ema.") for name in names) for names in (kept, here)]
    if averaged[0] != averaged[1]:
        how = ("with", "without") if averaged[0] else ("without", "with")
        raise ValueError(
            f"the checkpoint was trained {how[0]} a moving average, and this is a training {how[1]} one: "
            "set model.ema_decay as it was"
        )


def _excerpt(names: Sequence[str], number: int) -> str:
    begin = max(0, min(number, len(names) - 1) - _SHOWN // 2)
    shown = ", ".join(printable(str(name)) for name in names[begin : begin + _SHOWN])
    return ("… " if begin else "") + shown + (" …" if begin + _SHOWN < len(names) else "")


def _print_differences(title: str, kept: Facts, here: Facts, names: Sequence[str]) -> None:
    lines = [line for name in names for line in _differences(name, kept.get(name), here.get(name))]
    if lines:
        rank_zero_info(f"{title}: {', '.join(map(printable, lines))}")


def _differences(name: str, kept: Any, here: Any) -> list[str]:
    if isinstance(kept, Mapping) and isinstance(here, Mapping):
        return [x for key in {**kept, **here} for x in _differences(f"{name}.{key}", kept.get(key), here.get(key))]
    return [] if kept == here else [f"{name} was {kept} and is {here} here"]
