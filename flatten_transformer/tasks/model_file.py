"""The file of a trained model: safetensors, with all that is needed to use it, written so that it is never half."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from flatten_transformer import __version__
from flatten_transformer.atomic_file import write_atomically
from flatten_transformer.layers.learned_grids import GRIDS
from flatten_transformer.lazy import load
from flatten_transformer.models.checkpoint import grids_from_header, grids_to_header, with_grids_of
from flatten_transformer.tasks.kinds import KINDS, Kind

_KEY = "flatten_transformer"  # of our entry in the metadata


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of its model besides the weights.

    Args:
        name: timm's name of the model.
        model_args: Further keyword arguments of ``timm.create_model``.
        class_names: Name of each output.
        preprocessing: What is done to an image first.
        task: What it does.
        category_ids: Of a detector: COCO's id of each class, as in its data; None for 1 and so on.

    Raises:
        ValueError: If ``category_ids`` do not fit the classes.
    """

    name: str
    model_args: dict[str, Any]
    class_names: Sequence[str]
    preprocessing: Any  # the dataclass of the kind
    task: Kind = "classify"
    category_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        ids = self.category_ids
        if ids is not None and not (len(set(ids)) == len(ids) == len(self.class_names) and set(map(type, ids)) <= {int}):
            raise ValueError(f"category_ids must hold a whole number for each of {len(self.class_names)} classes, no two alike")

    def build(self) -> nn.Module:
        """Return the model with fresh weights."""
        args = {**self.model_args, "pretrained": False}  # the weights come from the file
        if "checkpoint_path" in args:
            args["checkpoint_path"] = ""
        model: nn.Module = load(KINDS[self.task].build)(self.name, args, len(self.class_names), self.preprocessing.in_chans)
        return model


def save_model(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write a model file; whatever happens meanwhile, ``path`` holds the old file or the whole new one.

    Args:
        path: Where to; missing folders are made.
        model: The model whose weights are kept.
        info: What it takes to build and use it.

    Example:
        >>> from flatten_transformer.data.preprocessing import Preprocessing
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
    """Return the model of a file, in evaluation mode on the CPU, and what the file says of it.

    Args:
        path: A file written by :func:`save_model`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a model file, or damaged; the message says what to do.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    info = _info(path, metadata)
    model = info.build()
    try:
        # older files have no grids: theirs are those of the model that they describe
        model.load_state_dict(grids_from_header(tensors, metadata) if GRIDS in metadata else with_grids_of(model, tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1:2]) or str(error)
        raise ValueError(
            f"the tensors of {path} do not fit its model {info.name} ({reason}): it was changed, or written by another version"
        ) from None
    return model.eval(), info


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}: check the path; `flatten fit` writes one, model.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        cure = "give it the model.safetensors that `flatten fit` writes beside its .ckpt files"
        raise ValueError(f"{path} is not a safetensors file ({error}): {cure}") from None


def _info(path: Path, metadata: dict[str, str]) -> ModelInfo:
    if _KEY not in metadata:
        raise ValueError(f"{path} does not say which model it holds: give it a model.safetensors that `flatten fit` wrote")
    try:
        entry = json.loads(metadata[_KEY])
        task = entry.get("task", "classify")
        preprocessing = load(KINDS[task].preprocessing)(**entry["preprocessing"])
        return ModelInfo(entry["name"], entry["model_args"], entry["class_names"], preprocessing, task, entry.get("category_ids"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the description in {path} cannot be read ({error!r}): was it written by another version?") from None
