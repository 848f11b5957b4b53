"""timm's models by name, linearized on request."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from flatten_transformer.linearize.convert import linearize as make_linear
from flatten_transformer.utils.suggest import did_you_mean


def create_model(name: str, *, linearize: Mapping[str, Any] | bool = False, **args: Any) -> nn.Module:
    """Build a timm model, and make its softmax attentions linear if asked to.

    Args:
        name: Any name in ``timm.list_models()``.
        linearize: Options of :func:`flatten_transformer.linearize`, such as ``{"keep": [3]}``; True: none; False: not at all.
        args: Other arguments of ``timm.create_model``. Weights that they load are those of the softmax model.

    Raises:
        ValueError: If linearize has no such option, or the model cannot be linearized.

    Example:
        >>> model = create_model("vit_tiny_patch16_224", depth=2, linearize={"attention": "relu"})
        >>> type(model.blocks[0].attn).__name__
        'LinearAttention'
    """
    return linearized(timm.create_model(name, **args), linearize)


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
    options: object = {} if linearize is True else linearize
    if not isinstance(options, Mapping):
        raise ValueError(f'linearize must be true or hold options by name, such as {{"attention": "relu"}}, got {linearize!r}')
    known = [name for name in inspect.signature(make_linear).parameters if name not in ("model", "images")]
    for name in options:
        if name not in known:
            raise ValueError(f"linearize has no option {name!r}: {did_you_mean(str(name), known)}")
    return make_linear(model, **options)
