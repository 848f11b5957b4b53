"""timm's models by name, linearized on request."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from flatten_transformer.linearize.convert import linearize as make_linear
from flatten_transformer.models.read_weights import read_tensors
from flatten_transformer.utils.suggest import did_you_mean

MIXER = ".mixer."  # in the names of what a student has and its teacher has not
_JAX = (".npz", ".npy")  # which timm reads for some models


def create_model(name: str, *, linearize: Mapping[str, Any] | bool = False, **args: Any) -> nn.Module:
    """Build a timm model, and make its softmax attentions linear if asked to.

    Args:
        name: Any name in ``timm.list_models()``.
        linearize: Options of :func:`flatten_transformer.linearize`, such as ``{"keep": [3]}``; True: none; False: not at all.
        args: Other arguments of ``timm.create_model``. Weights that they load are those of the softmax model, or, from a file, of
            a student of the same options.

    Raises:
        ValueError: If linearize has no such option, or the model cannot be linearized.

    Example:
        >>> model = create_model("vit_tiny_patch16_224", depth=2, linearize={"attention": "relu"})
        >>> type(model.blocks[0].attn).__name__
        'LinearAttention'
    """
    overlay = args.get("pretrained_cfg_overlay")
    file = overlay.get("file") if isinstance(overlay, Mapping) and args.get("pretrained") else None
    mixers = _mixers(file)
    model = linearized(timm.create_model(name, **args), linearize)
    if mixers:
        _load_mixers(model, mixers, file)
    return model


def linearized(model: nn.Module, linearize: Mapping[str, Any] | bool) -> nn.Module:
    """Return the linear form of a model, or the model itself.

    Args:
        model: A softmax model.
        linearize: As in :func:`create_model`.

    Raises:
        ValueError: If linearize has no such option, or the model cannot be linearized.
    """
    if linearize is False:
        return model
    options: Any = {} if linearize is True else linearize
    check_options(options)
    return make_linear(model, **options)


def check_options(options: object, beside: Collection[str] = ()) -> None:
    """Check the options of :func:`flatten_transformer.linearize` that a file may hold.

    Args:
        options: Options by name.
        beside: Options that have a place of their own.

    Raises:
        ValueError: If there is no such option.

    Example:
        >>> check_options({"windows": "own"})
    """
    if not isinstance(options, Mapping):
        raise ValueError(f'linearize must be true or hold options by name, such as {{"attention": "relu"}}, got {options!r}')
    known = [name for name in inspect.signature(make_linear).parameters if name not in ("model", "images", *beside)]
    for name in options:
        if name in beside:
            raise ValueError(f"{name} is no further option of linearize: give --{name}")
        if name not in known:
            raise ValueError(f"linearize has no option {name!r}: {did_you_mean(str(name), known)}")


def _mixers(file: Any) -> dict[str, Tensor]:
    """Return what a student's file holds beyond a softmax model's, which timm drops."""
    if not file or str(file).endswith(_JAX):
        return {}
    return {name: value for name, value in read_tensors(Path(file)).items() if MIXER in name}


def _load_mixers(model: nn.Module, mixers: Mapping[str, Tensor], file: Any) -> None:
    wanted = {name for name in model.state_dict() if MIXER in name}
    if mixers.keys() != wanted:
        odd = min(mixers.keys() ^ wanted)
        raise ValueError(
            f"{file} is a linear student, of another form than this model (first: {odd}): give the linearize that it was made "
            "with, model_args.linearize in the config.yaml of its run; as a teacher, the softmax model"
        )
    model.load_state_dict(mixers, strict=False)
