"""Weights of softmax models as a beginning: what linear attention adds stays as initialised, and one sentence says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from flatten_transformer.layers import GridAttention

_SHARED = ("qkv", "q", "kv", "proj", "sr", "sr_norm", "get_v")  # parts of an attention that softmax attention has too
_WITHOUT_PLACE = ("relative_position_bias_table", "sr", "sr_norm")  # parts that linear attention may lack
_HEADS_AND_TOKENS = ("cls_token", "head_dist.weight", "head_dist.bias")  # of the model, which it may lack


class Difference(NamedTuple):
    """What linear attention has otherwise than softmax attention."""

    added: Mapping[str, Tensor]  # initial tensors of the model
    left_out: frozenset[str]  # names of the file
    sentence: str  # for the user; empty: no difference


def difference(tensors: Mapping[str, Tensor], model: nn.Module) -> Difference:
    """Compare the tensors of a softmax model with a model of linear attention.

    There is a difference only if the file has nothing of what linear attention adds. Other misfits are left to
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
    attentions = [name for name, module in model.named_modules() if isinstance(module, GridAttention)]
    parts = {name: _part(name, attentions) for name in (*own, *tensors)}
    added = {name: own[name] for name in own if parts[name] and _first(parts[name]) not in _SHARED}
    if not added or added.keys() & tensors.keys():
        return Difference({}, frozenset(), "")
    unknown = [name for name in tensors if name not in own]
    left_out = [name for name in unknown if _first(parts[name]) in _WITHOUT_PLACE or name in _HEADS_AND_TOKENS]
    sentence = (
        f"these are weights of softmax attention: {len(own) - len(added)} of {len(own)} tensors are from them, what linear "
        f"attention adds begins as initialised ({_listed(parts[name] for name in added)})"
    )
    if left_out:
        sentence += f", and nothing here takes {_listed(parts[name] or name for name in left_out)}"
    return Difference(added, frozenset(left_out), f"{sentence}; train the model before you judge it")


def _part(name: str, attentions: Iterable[str]) -> str:
    """Return a name without that of its attention; empty: it is of none."""
    return next((name[len(prefix) + 1 :] for prefix in attentions if name.startswith(f"{prefix}.")), "")


def _first(part: str) -> str:
    return part.partition(".")[0]


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(parts))
