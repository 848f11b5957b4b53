"""Checkpoint filters of every family: unwrap, resize to the model's grids, reject misfits, convert names on any load."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from flatten_transformer.layers.learned_grids import GRIDS, SQUARE, LearnsOnGrid
from flatten_transformer.models.block_types import check_blocks
from flatten_transformer.models.softmax_weights import difference

_LOGGER = logging.getLogger(__name__)
_OWN_NAMES = "own_names"  # in the metadata of a model: its names are converted already
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


class StateDict(dict[str, Tensor]):
    """Tensors by name with the metadata of PyTorch's state dicts, here the grids that encodings were learned on.

    Args:
        tensors: Tensors by name.
        metadata: As ``state_dict()._metadata``, by module name.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self._metadata = dict(metadata)  # PyTorch's name, by which load_state_dict finds it


def unwrap(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the tensors of a training checkpoint by parameter name: ``{"model": …}`` and ``module.`` removed.

    Example:
        >>> list(unwrap({"model": {"module.head.weight": torch.zeros(1)}, "epoch": 3}))
        ['head.weight']
    """
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    named = {name: value for name, value in checkpoint.items() if isinstance(name, str) and isinstance(value, Tensor)}
    tensors = {name.removeprefix("module."): value for name, value in named.items()}
    metadata = getattr(checkpoint, "_metadata", {})
    known = metadata.items() if isinstance(metadata, Mapping) else ()
    return StateDict(tensors, {f"{name}.".removeprefix("module.").removesuffix("."): entry for name, entry in known})


def fit_checkpoint(checkpoint: Mapping[str, Any], model: nn.Module) -> StateDict:
    """Return the tensors of a checkpoint under the model's own names and on its grids.

    Args:
        checkpoint: As training code saves it, by the model's own names or by those it accepts (:func:`accept_official_names`).
        model: Target model.

    Raises:
        ValueError: If the grid of an encoding cannot be determined.
    """
    tensors = unwrap(checkpoint)
    convert = getattr(model, "convert_names", None)
    if convert is None:
        return fit_key_encodings(tensors, model)
    fitted = fit_key_encodings(StateDict(convert(tensors, model), tensors._metadata), model)
    fitted._metadata.setdefault("", {})[_OWN_NAMES] = True
    return fitted


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> StateDict:
    """Return the tensors of a checkpoint under the names of ``model``, encodings resized; for every family.

    Weights of the softmax model are completed by what linear attention adds, as initialised; a warning says so.

    Raises:
        ValueError: If it is a checkpoint of another model.
    """
    stem = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return complete(fit_checkpoint(state_dict, model), model, stem=stem)


def complete(fitted: StateDict, model: nn.Module, stem: str) -> StateDict:
    """Return the tensors checked, and if they are of softmax attention, completed, which is logged.

    Args:
        fitted: From :func:`fit_checkpoint`.
        model: Target model.
        stem: See :func:`check_fit`.

    Raises:
        LayoutError: If blocks are linear in the checkpoint and softmax in the model, and all else fits.
        ValueError: If it is a checkpoint of another model.
    """
    differs = difference(fitted, model)
    kept = {name: value for name, value in fitted.items() if name not in differs.left_out}
    completed = StateDict({**kept, **differs.added}, fitted._metadata)
    check_fit(completed, model, stem=stem)
    if differs.sentence:
        _LOGGER.warning(differs.sentence)
    return completed


def fit_key_encodings(state_dict: Mapping[str, Tensor], model: nn.Module) -> StateDict:
    """Resize key and position encodings and position biases to the model's grids.

    Grids come with the tensors, see :class:`StateDict`. Without one, a square number of tokens is taken for a square,
    which is logged if the model's grid is none.

    Args:
        state_dict: Tensors by the model's own names; encodings are ``[1, tokens, channels]``.
        model: Any module that holds attentions over a grid.

    Returns:
        The tensors on the grids of the model.

    Raises:
        ValueError: If the grid of an encoding cannot be determined.
    """
    fitted, metadata = dict(state_dict), getattr(state_dict, "_metadata", {})
    for prefix, module in model.named_modules():
        if isinstance(module, LearnsOnGrid):
            module.fit_learned(fitted, f"{prefix}." if prefix else "", _grids(metadata, prefix))
    return with_grids_of(model, fitted)


def with_grids_of(model: nn.Module, state_dict: Mapping[str, Tensor]) -> StateDict:
    """Return tensors marked as lying on the grids of ``model``."""
    return StateDict(state_dict, {name: {GRIDS: dict(module.learned_grids())} for name, module in _learners(model)})


def with_square_grids(model: nn.Module, state_dict: Mapping[str, Tensor]) -> StateDict:
    """Return tensors marked as learned on squares, as published ones were, where no grid is recorded."""
    squares = {name: dict.fromkeys(module.learned_grids(), SQUARE) for name, module in _learners(model)}
    metadata = getattr(state_dict, "_metadata", {})
    return StateDict(state_dict, {name: {GRIDS: _grids(metadata, name) or grids} for name, grids in squares.items()})


def grids_to_header(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the grids of a state dict as an entry of a safetensors header, which keeps no other metadata.

    Example:
        >>> from flatten_transformer import FocusedLinearAttention
        >>> grids_to_header(FocusedLinearAttention(8, 2, (2, 8)).state_dict())
        {'grids': '{"": {"positional_encoding": [2, 8]}}'}
    """
    metadata = getattr(state_dict, "_metadata", {})
    grids = {prefix: recorded for prefix in metadata if (recorded := _grids(metadata, prefix))}
    return {GRIDS: json.dumps(grids)} if grids else {}


def grids_from_header(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None) -> StateDict:
    """Return the tensors of a safetensors file with the grids in its header; none, if it cannot be parsed.

    Example:
        >>> grids_from_header({}, {"grids": '{"": {"pos_embed": [2, 8]}}'})._metadata
        {'': {'grids': {'pos_embed': [2, 8]}}}
    """
    try:
        grids = json.loads((header or {}).get(GRIDS, "{}"))
    except (ValueError, RecursionError):
        grids = {}
    return StateDict(
        tensors, {prefix: {GRIDS: recorded} for prefix, recorded in grids.items()} if isinstance(grids, dict) else {}
    )


def _learners(model: nn.Module) -> Iterator[tuple[str, LearnsOnGrid]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LearnsOnGrid))


def _grids(metadata: Any, prefix: str) -> Any:
    """Return the recorded grids of one module; metadata from a file may hold anything."""
    entry = metadata.get(prefix) if isinstance(metadata, Mapping) else None
    return entry.get(GRIDS) if isinstance(entry, Mapping) else None


def check_fit(
    state_dict: Mapping[str, Tensor], model: nn.Module, classifier: str = "head.", stem: str = "patch_embed.proj"
) -> None:
    """Raise ValueError unless names and shapes are the model's; classes and input channels may differ.

    Args:
        state_dict: Tensors by name.
        model: Target model.
        classifier: Prefix of the names that are not compared.
        stem: The convolution whose input channels are not compared: timm adapts them to ``in_chans`` afterwards.
    """

    def shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
        shape_of = {name: list(value.shape) for name, value in tensors.items() if not name.startswith(classifier)}
        if len(shape_of.get(f"{stem}.weight", [])) == 4:
            del shape_of[f"{stem}.weight"][1]
        return shape_of

    expected, actual = shapes(model.state_dict()), shapes(state_dict)
    check_blocks(model, expected, actual)
    missing = sorted(expected.keys() - actual.keys())
    unexpected = sorted(actual.keys() - expected.keys())
    misshapen = sorted(name for name in expected.keys() & actual.keys() if expected[name] != actual[name])
    if not (missing or unexpected or misshapen):
        return
    parts = [
        f"{len(names)} {what} (first: {names[0]})" for what, names in (("missing", missing), ("unexpected", unexpected)) if names
    ]
    if misshapen:
        name = misshapen[0]
        parts.append(f"{len(misshapen)} of another shape (first: {name} is {actual[name]}, the model has {expected[name]})")
    raise ValueError(
        f"this checkpoint is not of {type(model).__name__} in this size: of {len(expected)} tensors {', '.join(parts)}; "
        "check the model name and its keyword arguments"
    )


def accept_official_names(model: nn.Module, convert: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]) -> None:
    """Convert names in ``model.load_state_dict`` too: timm's ``checkpoint_path=`` bypasses the checkpoint filter.

    Args:
        model: The model, possibly part of a larger one.
        convert: ``(state_dict, model)`` to tensors by the model's own names. Unknown
            and missing keys must pass through: ``load_state_dict`` reports them as its ``strict`` demands.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> accept_official_names(model, lambda tensors, _: {name.removeprefix("fc."): x for name, x in tensors.items()})
        >>> model.load_state_dict({"fc.weight": torch.ones(1, 1), "fc.bias": torch.ones(1)})
        <All keys matched successfully>
    """
    model.convert_names = convert  # type: ignore[assignment]  # neither a tensor nor a module
    model.register_load_state_dict_pre_hook(partial(_convert_in_place, convert))


def _convert_in_place(
    convert: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]],
    model: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    *_: Any,
) -> None:
    if local_metadata.pop(_OWN_NAMES, False):
        return
    own = {name.removeprefix(prefix): state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    state_dict.update({prefix + name: value for name, value in convert(own, model).items()})
