"""What every family's checkpoint filter shares: unwrap, resize the key encodings, refuse strangers, convert on any load."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from flatten_transformer.layers import GridAttention
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
    tensors = {name: value for name, value in checkpoint.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def fit_key_encodings(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Resize what attentions have learned on another grid than the model's, key encodings bicubically.

    Args:
        state_dict: Tensors by the model's own names; encodings are ``[1, tokens, channels]``.
        model: Any module that holds attentions over a grid.

    Raises:
        ValueError: If an encoding of another length is not square: its grid cannot be known.
    """
    fitted = dict(state_dict)
    for prefix, module in model.named_modules():
        if not isinstance(module, GridAttention):
            continue
        for leaf, _ in module.named_parameters():
            name = f"{prefix}.{leaf}"
            if name not in fitted:
                continue
            if leaf == "positional_encoding":
                fitted[name] = fit_encoding(name, fitted[name], module.grid_size)
            else:
                fitted[name] = module.fit(leaf, fitted[name])
    return fitted


def fit_encoding(name: str, encoding: Tensor, grid_size: tuple[int, ...]) -> Tensor:
    """Return ``encoding``, ``[1, tokens, channels]`` of a square grid, resized to ``grid_size`` unless it has its length.

    Raises:
        ValueError: If it has another length and is not square: its grid cannot be known.

    Example:
        >>> fit_encoding("pos_embed", torch.zeros(1, 196, 64), (12, 12)).shape
        torch.Size([1, 144, 64])
    """
    count = encoding.shape[1]
    if count == math.prod(grid_size):
        return encoding
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(
            f"{name} has {count} tokens, not a square, where the model has the grid {grid_size}: "
            "build the model with the img_size it was trained with, load, then call set_input_size"
        )
    return resize_grid(encoding, (side, side), grid_size)


def check_fit(
    state_dict: Mapping[str, Tensor], model: nn.Module, classifier: str = "head.", stem: str = "patch_embed.proj"
) -> None:
    """Raise ValueError unless names and shapes are the model's; classes and input channels may be others.

    Args:
        state_dict: Tensors by name.
        model: The model they shall be loaded into.
        classifier: Prefix of the names that are not compared.
        stem: The convolution whose input channels are not compared: timm adapts them to ``in_chans`` afterwards.
    """

    def shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
        found = {name: list(value.shape) for name, value in tensors.items() if not name.startswith(classifier)}
        if len(found.get(f"{stem}.weight", [])) == 4:
            del found[f"{stem}.weight"][1]
        return found

    wanted, came = shapes(model.state_dict()), shapes(state_dict)
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


def accept_official_names(model: nn.Module, convert: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]) -> None:
    """Convert whatever ``model.load_state_dict`` is given first: timm's ``checkpoint_path=`` passes by the checkpoint filter.

    Args:
        model: The model, also where it is a part of a larger one.
        convert: ``(state_dict, model)`` to tensors by the model's own names, and in its sizes. It must leave alone what it
            does not know, strangers and gaps: ``load_state_dict`` reports them, or not, as its ``strict`` says.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> accept_official_names(model, lambda tensors, _: {name.removeprefix("fc."): x for name, x in tensors.items()})
        >>> model.load_state_dict({"fc.weight": torch.ones(1, 1), "fc.bias": torch.ones(1)})
        <All keys matched successfully>
    """
    model.register_load_state_dict_pre_hook(partial(_convert_in_place, convert))


def _convert_in_place(
    convert: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]],
    model: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    *_: Any,
) -> None:
    own = {name.removeprefix(prefix): state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    state_dict.update({prefix + name: value for name, value in convert(own, model).items()})
