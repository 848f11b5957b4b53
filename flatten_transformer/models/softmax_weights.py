"""Weights of softmax models as a beginning: what linear attention adds stays as initialised, and one sentence says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from flatten_transformer.layers import GridAttention
from flatten_transformer.models.block_types import SHARED

_WITHOUT_PLACE = ("relative_position_bias_table", "sr", "sr_norm")  # parts of softmax attention that linear attention may lack
_HEADS_AND_TOKENS = ("cls_token", "head_dist.weight", "head_dist.bias")  # of the model, which it may lack


class Difference(NamedTuple):
    """What the linear attentions of a model have otherwise than the softmax attentions of a file."""

    added: Mapping[str, Tensor]  # initial tensors of the model
    left_out: frozenset[str]  # names of the file
    sentence: str  # for the user; empty: no difference


def difference(tensors: Mapping[str, Tensor], model: nn.Module) -> Difference:
    """Compare tensors of softmax attention with a model whose attention is linear there, block by block.

    An attention of the file is softmax if it has nothing of what the model's linear attention adds. Other misfits are left to
    :func:`flatten_transformer.models.fit_weights.check_fit`.

    Args:
        tensors: Tensors by the model's own names.
        model: Target model.

    Example:
        >>> import timm
        >>> softmax, linear = (timm.create_model("flatten_pvt_v2_b0", attn_types=letter) for letter in "SL")
        >>> print(difference(softmax.state_dict(), linear).sentence)  # doctest: +ELLIPSIS
        these are weights of softmax attention: 154 of 186 tensors are from them, what linear ...
    """
    own = model.state_dict()
    linear = [name for name, module in model.named_modules() if isinstance(module, GridAttention)]
    extra = {name: _added(name, own) for name in linear}
    begun = [name for name in linear if extra[name] and _is_softmax(name, extra[name], tensors)]
    if not begun:
        return Difference({}, frozenset(), "")
    added = {name: own[name] for attention in begun for name in extra[attention]}
    unknown = [name for name in tensors if name not in own]
    parts = {name: _part(name, begun) for name in (*added, *unknown)}
    left_out = [name for name in unknown if _first(parts[name]) in _WITHOUT_PLACE or name in _HEADS_AND_TOKENS]
    where = "" if begun == linear else f"in {len(begun)} of {len(linear)} linear attentions (first: {begun[0]}) "
    sentence = (
        f"{where}these are weights of softmax attention: {len(own) - len(added)} of {len(own)} tensors are from them, what "
        f"linear attention adds begins as initialised ({_listed(parts[name] for name in added)})"
    )
    if left_out:
        sentence += f", and nothing here takes {_listed(parts[name] or name for name in left_out)}"
    return Difference(added, frozenset(left_out), f"{sentence}; train the model before you judge it")


def _added(attention: str, own: Iterable[str]) -> list[str]:
    """Return the names of what a linear attention adds to the tensors of softmax attention."""
    prefix = f"{attention}."
    return [name for name in own if name.startswith(prefix) and _first(name.removeprefix(prefix)) not in SHARED]


def _is_softmax(attention: str, added: Iterable[str], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether an attention is there, without anything that linear attention adds."""
    return any(name.startswith(f"{attention}.") for name in tensors) and not any(name in tensors for name in added)


def _part(name: str, attentions: Iterable[str]) -> str:
    """Return a name without that of its attention; empty: it is of none."""
    return next((name[len(prefix) + 1 :] for prefix in attentions if name.startswith(f"{prefix}.")), "")


def _first(part: str) -> str:
    return part.partition(".")[0]


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(parts))
