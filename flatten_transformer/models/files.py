"""Checkpoint files: read without executing anything in them, written so that none is ever half."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flatten_transformer.atomic_file import write_atomically
from flatten_transformer.digest import check_whole
from flatten_transformer.models.checkpoint import grids_from_header, grids_to_header, unwrap

# timm reads checkpoint_path= with PyTorch's restricted unpickler, which refuses the configuration object in the
# authors' files. As a plain dict, which executes nothing, it may pass. The one global setting this package makes.
torch.serialization.add_safe_globals([(OrderedDict, "yacs.config.CfgNode")])


class Inert:
    """Stands in for whatever a file asks to be built besides tensors: takes anything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> Inert:
        """Return itself, for files that call what they were given."""
        return self

    def __setitem__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def append(self, _: object) -> None:
        """Ignore the item."""

    extend = add = update = append


_TENSOR_PARTS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; everything else a file names becomes :class:`Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TENSOR_PARTS or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        return Inert


_PICKLE = SimpleNamespace(  # what torch.load asks of a pickle module
    __name__=__name__,
    Unpickler=_TensorUnpickler,
    load=lambda file, **options: _TensorUnpickler(file, **options).load(),
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, whatever lies beside them.

    Training code often pickles its configuration into the file. No code and no class that a file names is run or
    imported here, so that even a file made to do harm is harmless.

    Args:
        path: A safetensors file, or one of ``torch.save``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, or holds no tensors.

    Example:
        >>> path = getfixture("tmp_path") / "old.pth"
        >>> torch.save({"model": {"head.bias": torch.zeros(2)}, "config": object()}, path)
        >>> read_tensors(path)
        {'head.bias': tensor([0., 0.])}
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: check the path")
    check_whole(path)
    tensors = unwrap(_load(path))
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors by name: it must be a state dict, or a dict with one under 'model' or 'state_dict'"
        )
    return tensors


def _load(path: Path) -> Mapping[str, Any]:
    wanted = "a checkpoint must be a safetensors file or one that torch.save wrote"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return grids_from_header({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise ValueError(f"{path} is a TorchScript program, not a checkpoint: {wanted}")
        loaded = torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
    ) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}): {wanted}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}: {wanted}, with tensors by name")
    return loaded


def convert_checkpoint(source: Path, target: Path, /) -> None:
    """Turn a checkpoint with pickled content into a safetensors file of its tensors alone.

    Args:
        source: A file of ``torch.save``; nothing in it is executed.
        target: The safetensors file to write.

    Raises:
        FileExistsError: If ``target`` exists.
        ValueError: If ``target`` is not named .safetensors, or ``source`` is not a checkpoint.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"the target must be named .safetensors, got {target}")
    if target.exists():
        raise FileExistsError(f"{target} exists already: choose another name, or remove it first")
    came = read_tensors(source)
    tensors = {name: value.clone().contiguous() for name, value in came.items()}
    write_atomically(target, save(tensors, {"format": "pt", **grids_to_header(came)}))
