"""Short names of the options that everyone changes, and other libraries' words for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from flatten_transformer.tasks.registry import TaskName


class Short(NamedTuple):
    """An option by a short name.

    Attributes:
        long: The options that it stands for; ``{}`` in one is the place of the value.
        help: Its line on the help screen.
    """

    long: tuple[str, ...]
    help: str


_ALL = {
    "data": Short(("data.root",), "folder of your images"),
    "model": Short(("model.name",), "any timm model; in detection and segmentation the detector or segmenter"),
    "pretrained": Short(("model.pretrained",), "true for the published weights, or a file of weights"),
    "img_size": Short(("data.img_size",), "side of the images in pixels"),
    "epochs": Short(("trainer.max_epochs",), "times through the training images"),
    "batch_size": Short(("data.batch_size",), "images a step, over all devices"),
    "lr": Short(("model.optim.lr",), "peak learning rate"),
    "weight_decay": Short(("model.optim.weight_decay",), "decay of weight matrices"),
    "workers": Short(("data.num_workers",), "processes that read images"),
    "devices": Short(("trainer.devices",), "GPUs: a number, a list such as [0,2], or auto"),
    "precision": Short(("trainer.precision",), "32-true, bf16-mixed or 16-mixed"),
    "keep": Short(("checkpoint.save_top_k",), "checkpoints of the best epochs to keep, -1 for all; the last is kept besides"),
    "seed": Short(("seed_everything",), "of all random numbers"),
}
_DENSE = {
    "backbone": Short(("model.model_args.backbone",), "any timm model with a feature pyramid"),
    "pretrained": Short(("model.model_args.backbone_args.pretrained",), "true for the backbone's published weights"),
}
_SIDES = ("data.sizes=[{}]", "model.model_args.min_size")
_SPECIAL = {
    "detect": {**_DENSE, "img_size": Short(_SIDES, "shorter side of the images in pixels")},
    "segment": {**_DENSE, "img_size": Short(("data.crop_size",), "side of the training crops in pixels")},
}
_WORDS = {  # of timm, ultralytics, transformers and Lightning: our option
    "amp": "precision",
    "batch": "batch_size",
    "checkpoint": "ckpt_path",
    "crop_size": "img_size",
    "data_dir": "data",
    "data_path": "data",
    "device": "trainer.accelerator",
    "gpus": "devices",
    "image_size": "img_size",
    "imgsz": "img_size",
    "input_size": "img_size",
    "learning_rate": "lr",
    "lr0": "lr",
    "model_name": "model",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "optimizer": "model.optim.opt",
    "output": "trainer.default_root_dir",
    "output_dir": "trainer.default_root_dir",
    "per_device_train_batch_size": "data.device_batch_size",
    "project": "trainer.default_root_dir",
    "resume": "ckpt_path",
    "run_name": "name",
    "warmup": "model.optim.warmup_epochs",
    "wd": "weight_decay",
    "weights": "pretrained",
}
_GROUPS = ("data", "model")  # these are long options too, with a mapping, or a file of one
_MAPPINGS = ("}", ".yaml", ".yml", ".json")
Pair = tuple[str, "str | None"]  # an option and its value


def short_options(task: TaskName) -> dict[str, Short]:
    """Return the short options of a task, by name.

    Example:
        >>> short_options("segment")["img_size"].long
        ('data.crop_size',)
    """
    return _ALL | _SPECIAL.get(task, {})


def words(task: TaskName) -> dict[str, str]:
    """Return how options are called here, by what other libraries call them.

    Example:
        >>> words("classify")["learning_rate"]
        '--lr (--model.optim.lr)'
    """
    short = {name: f"--{name} (--{option.long[0].partition('=')[0]})" for name, option in short_options(task).items()}
    return {word: short.get(ours, f"--{ours}") for word, ours in [*_WORDS.items(), *((name, name) for name in short)]}


def expand(args: Sequence[str], task: TaskName) -> list[str]:
    """Return the arguments with short options replaced by the long ones that they stand for.

    Args:
        args: Arguments after the command name; ``--batch-size`` means ``--batch_size``.
        task: Chooses the meaning.

    Raises:
        ValueError: If a value is missing, or an option is given by both names.

    Example:
        >>> expand(["--lr", "1e-3", "--img-size=64", "--model.optim.opt", "sgd"], "segment")
        ['--model.optim.lr', '1e-3', '--data.crop_size', '64', '--model.optim.opt', 'sgd']
    """
    pairs = split(args)
    given, names = {option for option, _ in pairs}, short_options(task)
    return join(pair for option, value in pairs for pair in _long(option, value, names, given))


def split(args: Sequence[str]) -> list[Pair]:
    """Return options with their values; an option without one, and a value without an option, stand alone.

    Example:
        >>> split(["--lr=1e-3", "--config", "finetune", "--help"])
        [('--lr', '1e-3'), ('--config', 'finetune'), ('--help', None)]
    """
    pairs: list[Pair] = []
    rest = list(args)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("-"):
            pairs.append((option + equals + value, None))
        elif equals or not rest or rest[0].startswith("--"):
            pairs.append((option, value if equals else None))
        else:
            pairs.append((option, rest.pop(0)))
    return pairs


def join(pairs: Iterable[Pair]) -> list[str]:
    """Return the arguments of options and values, the reverse of :func:`split`."""
    args: list[str] = []
    for option, value in pairs:
        if value is None:
            args.append(option)
        elif value.startswith("-"):
            args.append(f"{option}={value}")
        else:
            args += [option, value]
    return args


def _long(option: str, value: str | None, names: Mapping[str, Short], given: set[str]) -> list[Pair]:
    name = option.removeprefix("--").replace("-", "_")
    if not option.startswith("--") or name not in names or (name in _GROUPS and (value or "").endswith(_MAPPINGS)):
        return [(option, value)]
    if value is None and name == "pretrained":
        value = "true"
    if value is None:
        raise ValueError(f"{option} needs a value: {names[name].help}")
    pairs: list[Pair] = []
    for long, _, place in (each.partition("=") for each in names[name].long):
        if f"--{long}" in given:
            raise ValueError(f"{option} and --{long} are the same: give one of them")
        pairs.append((f"--{long}", (place or "{}").format(value)))
    return pairs
