"""Model files: safetensors with everything needed for inference, written atomically."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from flatten_transformer import __version__
from flatten_transformer.layers.learned_grids import GRIDS
from flatten_transformer.models.fit_weights import StateDict, grids_from_header, grids_to_header, with_grids_of
from flatten_transformer.models.read_weights import in_one_line, one_line, read_safetensors
from flatten_transformer.tasks.backbone import without_weights
from flatten_transformer.tasks.description import read_fields, read_json, shown
from flatten_transformer.tasks.outline import build_on_meta, build_uninitialized
from flatten_transformer.tasks.registry import TaskName, task_spec
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.printable import printable

_KEY = "flatten_transformer"  # our entry in the metadata
_MAX_NUMBER = 2**20  # for integers among model arguments
MAX_SIDE_PX = 8192  # a square image of this side takes 0.8 GB
_CHANGED = "it was changed, or written by another version"


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model, stored beside its weights.

    Args:
        name: timm name of the model, or detector or segmenter.
        model_args: Other arguments of the model.
        class_names: Name of each output.
        preprocessing: Image preprocessing.
        task: Task name.
        category_ids: COCO category id of each class of a detector; None for 1 and so on.

    Raises:
        ValueError: If ``category_ids`` do not fit the classes.
    """

    name: str
    model_args: dict[str, Any]
    class_names: Sequence[str]
    preprocessing: Any  # the dataclass of the task
    task: TaskName = "classify"
    category_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        ids = self.category_ids
        if ids is not None and not (len(set(ids)) == len(ids) == len(self.class_names) and set(map(type, ids)) <= {int}):
            raise ValueError(f"category_ids must hold a whole number for each of {len(self.class_names)} classes, no two alike")

    def build(self) -> nn.Module:
        """Build the model with random weights; weight sources in the arguments are ignored, nothing is opened or fetched."""
        args = {**without_weights(self.model_args), "pretrained": False}
        if isinstance(backbone_args := args.get("backbone_args"), Mapping):
            args["backbone_args"] = without_weights(backbone_args)
        model: nn.Module = task_spec(self.task).build(self.name, args, len(self.class_names), self.preprocessing.in_chans)
        return model


def save_model(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write a model file atomically.

    Args:
        path: Output file; missing folders are created.
        model: Model whose weights are saved.
        info: Its description.

    Example:
        >>> from flatten_transformer.tasks.classification.preprocessing import Preprocessing
        >>> info = ModelInfo("flatten_deit_tiny_patch16_224", {"depth": 1}, ("cat", "dog"), Preprocessing(224, 1, (0.5,), (0.5,)))
        >>> file = getfixture("tmp_path") / "model.safetensors"
        >>> save_model(file, info.build(), info)
        >>> model, info = load_model(file)
        >>> info.class_names
        ['cat', 'dog']
    """
    state = model.state_dict()
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    entry = json.dumps({**asdict(info), "version": __version__})
    write_atomically(path, save(tensors, {"format": "pt", _KEY: entry, **grids_to_header(state)}))


def load_model(path: str | Path) -> tuple[nn.Module, ModelInfo]:
    """Load a model, in evaluation mode on the CPU, with its description.

    The description is checked against the tensors before anything is allocated; no other file is opened.

    Args:
        path: File written by :func:`save_model`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a model file, is damaged, or its description does not match its tensors; the message says
            what to do.

    Warns:
        UserWarning: If a tensor holds NaN or infinity.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    info = _info(path, metadata)
    _check(path, info, tensors, metadata)
    with _named(path, info):
        model = build_uninitialized(info.build)
        model.load_state_dict(_on_grids(model, tensors, metadata))
    _warn_unless_finite(path, model)
    return model.eval(), info


def describes_itself(path: Path) -> bool:
    """Return whether a file is one of :func:`save_model`, and says which model it holds.

    Example:
        >>> file = getfixture("tmp_path") / "weights.pth"
        >>> file.touch()
        >>> describes_itself(file)
        False
    """
    try:
        return _KEY in read_safetensors(path)[1]
    except ValueError:
        return False


@contextmanager
def forward_errors(info: ModelInfo) -> Iterator[None]:
    """Turn any error of a forward pass into a one-line ValueError: a file may describe images its model cannot take.

    Args:
        info: Description of the model.

    Example:
        >>> with forward_errors(ModelInfo("a net", {}, ("cat", "dog"), None)):
        ...     assert False, "16 pixels, not 32"
        Traceback (most recent call last):
        ValueError: a net cannot see the image (AssertionError: 16 pixels, not 32): its size may not be one that the model takes
    """
    try:
        yield
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:
        cure = "its size may not be one that the model takes"
        raise ValueError(f"{in_one_line(info.name)} cannot see the image ({one_line(error)}): {cure}") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the memory-mapped tensors and the metadata."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: give it the model.safetensors that `flatten fit` writes")
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}: check the path; `flatten fit` writes one, model.safetensors")
    try:
        return read_safetensors(path)
    except ValueError as error:
        cure = "give it the model.safetensors that `flatten fit` writes beside its .ckpt files"
        raise ValueError(f"{path} is not a safetensors file ({one_line(error)}): {cure}") from None


def _info(path: Path, metadata: Mapping[str, str]) -> ModelInfo:
    if _KEY not in metadata:
        raise ValueError(f"{path} does not say which model it holds: give it a model.safetensors that `flatten fit` wrote")
    try:
        entry = read_json(metadata[_KEY])
        if not isinstance(entry, dict):
            raise ValueError(f"it must hold values by name, got {shown(entry)}")
        known = {option.name for option in fields(ModelInfo)}
        own = {name: value for name, value in entry.items() if name in known}  # other versions may have more keys
        info = read_fields(ModelInfo, own, "the description")
        preprocessing = read_fields(task_spec(info.task).preprocessing, info.preprocessing, "preprocessing")
        _check_numbers(info)
    except ValueError as error:
        raise ValueError(f"the description in {path} cannot be read ({one_line(error)}): {_CHANGED}") from None
    return replace(info, preprocessing=preprocessing)


def _check_numbers(info: ModelInfo) -> None:
    """Raise ValueError for numbers that would exhaust time or memory."""
    if not info.class_names:
        raise ValueError("class_names must not be empty")
    for name in ("img_size", "short_side", "long_side", "window"):
        side = info.preprocessing.get(name) or 0
        if side / info.preprocessing.get("crop_pct", 1.0) > MAX_SIDE_PX:
            raise ValueError(f"preprocessing.{name} must be at most {MAX_SIDE_PX}, got {shown(side)}")
    for name, number in _numbers(info.model_args):
        if abs(number) > (limit := MAX_SIDE_PX if name == "min_size" else _MAX_NUMBER):
            raise ValueError(f"model_args.{name} must be at most {limit}, got {shown(number)}")


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, int]]:
    """Yield the integers in a JSON value at any depth, each with its name."""
    stack = [(name, value)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, int):
            yield name, value
        elif isinstance(value, Mapping):
            stack += value.items()
        elif isinstance(value, (list, tuple)):
            stack += [(name, each) for each in value]


def _on_grids(model: nn.Module, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> StateDict:
    """Return tensors with the grids stored in a file, or those of the model for an older file without grids."""
    return grids_from_header(tensors, metadata) if GRIDS in metadata else with_grids_of(model, tensors)


def _check(path: Path, info: ModelInfo, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Raise ValueError unless the tensors fit the described model, built on the meta device."""
    with _named(path, info):
        model = build_on_meta(info.build, tensors)
        with torch.device("meta"):
            shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
            model.load_state_dict(_on_grids(model, shapes, metadata))
    for name, expected in model.state_dict().items():
        if name in tensors and tensors[name].is_floating_point() != expected.is_floating_point():
            raise _no_fit(path, info, f"{name} is {tensors[name].dtype}, the model has {expected.dtype}")


@contextmanager
def _named(path: Path, info: ModelInfo) -> Iterator[None]:
    """Name the file in any error of building its model, which may come from invalid arguments."""
    try:
        yield
    except Exception as error:
        if "loading state_dict" in str(error):
            raise _no_fit(path, info, " ".join(str(error).split("\n\t")[1:2])) from error
        raise ValueError(f"the model in {path} cannot be built ({one_line(error)}): {_CHANGED}") from error


def _no_fit(path: Path, info: ModelInfo, reason: str) -> ValueError:
    return ValueError(f"the tensors of {path} do not fit its model {info.name} ({in_one_line(reason)}): {_CHANGED}")


def _warn_unless_finite(path: Path, model: nn.Module) -> None:
    parameters = {name: value.detach() for name, value in model.named_parameters() if value.is_floating_point() and value.numel()}
    bad = [name for name, value in parameters.items() if not all(map(torch.isfinite, value.aminmax()))]
    if bad:
        warnings.warn(
            f"{len(bad)} of {len(parameters)} tensors of {path} hold NaN or infinity (first: {printable(bad[0])}): "
            "what this model says means nothing; was its training stopped by a loss that was not finite?",
            stacklevel=3,
        )
