"""What every family's checkpoint filter shares: unwrap, resize the key encodings, refuse strangers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flatten_transformer.layers import FocusedLinearAttentionCore
from flatten_transformer.layers.grid import resize_grid

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a training checkpoint by parameter name: ``{"model": …}`` and ``module.`` removed.

    Example:
        >>> list(unwrap({"model": {"module.head.weight": torch.zeros(1)}, "epoch": 3}))
        ['head.weight']
    """
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    return {name.removeprefix("module."): value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def fit_key_encodings(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Resize, bicubically, every key encoding that was learned on another grid than the model's.

    Args:
        state_dict: Tensors by the model's own names; encodings are ``[1, tokens, channels]``.
        model: Any module that holds focused linear attention.

    Raises:
        ValueError: If an encoding of another length is not square: its grid cannot be known.
    """
    fitted = dict(state_dict)
    for prefix, module in model.named_modules():
        name = f"{prefix}.positional_encoding"
        if not isinstance(module, FocusedLinearAttentionCore) or module.positional_encoding is None or name not in fitted:
            continue
        encoding = fitted[name]
        if encoding.shape[1] != module.positional_encoding.shape[1]:
            side = math.isqrt(encoding.shape[1])
            if side * side != encoding.shape[1]:
                raise ValueError(
                    f"{name} has {encoding.shape[1]} tokens, not a square, where the model has the grid {module.grid_size}: "
                    "build the model with the img_size it was trained with, load, then call set_input_size"
                )
            fitted[name] = resize_grid(encoding, (side, side), module.grid_size)
    return fitted


def check_fit(state_dict: Mapping[str, Tensor], model: nn.Module, classifier: str = "head.") -> None:
    """Raise ValueError unless names and shapes are the model's; the classifier may differ in its classes.

    Args:
        state_dict: Tensors by name.
        model: The model they shall be loaded into.
        classifier: Prefix of the names that are not compared.
    """
    wanted = {name: list(value.shape) for name, value in model.state_dict().items() if not name.startswith(classifier)}
    came = {name: list(value.shape) for name, value in state_dict.items() if not name.startswith(classifier)}
    missing = sorted(wanted.keys() - came.keys())
    unexpected = sorted(came.keys() - wanted.keys())
    misshapen = sorted(name for name in wanted.keys() & came.keys() if wanted[name] != came[name])
    if not (missing or unexpected or misshapen):
        return
    parts = [
        f"{len(names)} {what} (first: {names[0]})" for what, names in (("missing", missing), ("unexpected", unexpected)) if names
    ]
    if misshapen:
        name = misshapen[0]
        parts.append(f"{len(misshapen)} of another shape (first: {name} is {came[name]}, the model has {wanted[name]})")
    raise ValueError(
        f"this checkpoint is not of {type(model).__name__} in this size: of {len(wanted)} tensors {', '.join(parts)}; "
        "check the model name and its keyword arguments"
    )
