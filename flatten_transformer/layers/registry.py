"""Attentions by name: those of this library, and yours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from flatten_transformer.hints import hint
from flatten_transformer.layers.agent_attention import AgentAttention
from flatten_transformer.layers.attention import GridAttention
from flatten_transformer.layers.focused_linear_attention import FocusedLinearAttention, FocusedLinearAttentionCore
from flatten_transformer.layers.inline_attention import InLineAttention
from flatten_transformer.layers.peers import (
    AngularAttention,
    EfficientAttention,
    EluAttention,
    HydraAttention,
    SoftmaxAttention,
)
from flatten_transformer.layers.polaformer_attention import PolaFormerAttention

Class = TypeVar("Class", bound=type[GridAttention])


class _Entry(NamedTuple):
    attention: type[GridAttention]
    defaults: Mapping[str, Any]


_ATTENTIONS: dict[str, _Entry] = {}


def register_attention(name: str, **defaults: Any) -> Callable[[Class], Class]:
    """Make a subclass of GridAttention known by a name: to :func:`create_attention` and to every model.

    Args:
        name: The name; one class may have several, with other defaults.
        defaults: Options of the class that are others than its own by this name.

    Returns:
        A decorator for the class, which it returns as it is.

    Raises:
        ValueError: If the name is taken by another class.

    Example:
        >>> @register_attention("average", rank_restoration=True)
        ... class AverageAttention(GridAttention):
        ...     def mix(self, q, k, v, layout):
        ...         return v.mean(dim=2, keepdim=True).expand_as(q)
        >>> create_attention("average", dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
        >>> unregister_attention("average")
    """

    def register(attention: Class) -> Class:
        taken = _ATTENTIONS.get(name)
        # the same class again is a cell of a notebook that was run again
        if taken is not None and _identity(taken.attention) != _identity(attention):
            raise ValueError(f"{name!r} is {taken.attention.__name__} already: choose another name")
        unknown = defaults.keys() - _options(attention)
        if unknown:
            raise ValueError(f"{attention.__name__} has no option {', '.join(sorted(unknown))} to set a default of")
        _ATTENTIONS[name] = _Entry(attention, defaults)
        return attention

    return register


def unregister_attention(name: str) -> None:
    """Forget a name.

    Raises:
        ValueError: If there is none such.
    """
    _entry(name)
    del _ATTENTIONS[name]


def list_attentions() -> list[str]:
    """Return the names of all attentions, in the order of their registration.

    Example:
        >>> list_attentions()[:5]
        ['focused', 'relu', 'enhanced', 'elu', 'hydra']
    """
    return list(_ATTENTIONS)


def create_attention(
    name: str,
    dim: int,
    num_heads: int,
    grid_size: Sequence[int],
    *,
    context_dim: int | None = None,
    qkv_bias: bool = True,
    proj_bias: bool = True,
    proj_drop: float = 0.0,
    sr_ratio: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> GridAttention:
    """Return an attention layer by name: ``layer(x, grid_size, attn_mask=…)``, whichever it is.

    Args:
        name: One of :func:`list_attentions`.
        dim: Channels C of ``x``.
        num_heads: Heads; divides ``dim``.
        grid_size: The grid that what it learns of positions is learned on; others may be passed at each call.
        context_dim: Channels of the context for cross attention, see FocusedLinearAttention.
        qkv_bias: Learn biases in the projections of queries, keys and values.
        proj_bias: Learn a bias in the output projection.
        proj_drop: Dropout probability after the output projection.
        sr_ratio: Take ``x`` for the context, spatially reduced, see GridAttention.add_projections.
        device: Where the parameters are made.
        dtype: Their dtype.
        options: What the attention has: ``kernel_size``, ``num_prefix_tokens``, ``key_encoding``, ``temperature``,
            ``rank_restoration``, ``stretch``, and its own, such as ``focusing_factor`` or ``num_agents``.

    Raises:
        ValueError: If there is no such attention, or it has no such option; the message says what there is.

    Example:
        >>> create_attention("hydra", dim=192, num_heads=3, grid_size=(14, 14))(torch.randn(2, 196, 192)).shape
        torch.Size([2, 196, 192])
    """
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    projections: dict[str, Any] = {"context_dim": context_dim, "qkv_bias": qkv_bias, "proj_bias": proj_bias}
    projections |= {"proj_drop": proj_drop, "sr_ratio": sr_ratio}
    if _entry(name).attention is FocusedLinearAttentionCore:  # which has a class of its own with projections
        options = _resolve(name, options)
        return FocusedLinearAttention(dim, num_heads, grid_size, **projections, **factory, **options)
    attention = create_attention_core(name, dim, num_heads, grid_size, **factory, **options)
    attention.add_projections(**projections, **factory)
    return attention


def create_attention_core(name: str, dim: int, num_heads: int, grid_size: Sequence[int], **options: Any) -> GridAttention:
    """Return an attention by name without projections, for hosts that keep their own: call ``attend``.

    Args:
        name: One of :func:`list_attentions`.
        dim: Channels C.
        num_heads: Heads; divides ``dim``.
        grid_size: The grid that what it learns of positions is learned on.
        options: As in :func:`create_attention`, with ``device`` and ``dtype``.

    Raises:
        ValueError: If there is no such attention, or it has no such option; the message says what there is.

    Example:
        >>> q, k, v = torch.randn(3, 2, 35, 32).unbind(0)
        >>> create_attention_core("efficient", 32, 2, (5, 7)).attend(q, k, v, (5, 7), (5, 7)).shape
        torch.Size([2, 35, 32])
    """
    return _entry(name).attention(dim, num_heads, grid_size, **_resolve(name, options))


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the attention ``name`` has all ``options``, and each of them acts."""
    attention, defaults = _entry(name)
    known = _options(attention)
    for option in options:
        if option not in known:
            raise ValueError(f"attention {name!r} has no option {option!r}: {hint(option, sorted(known))}")
    own = inspect.signature(attention).parameters
    convolves = {**defaults, **options}.get("rank_restoration", own["rank_restoration"].default)
    if "kernel_size" in options and not convolves:
        raise ValueError(
            f"attention {name!r} has no convolution whose kernel_size could be {options['kernel_size']}: leave it out, or "
            "pass rank_restoration=True too"
        )


def _resolve(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the defaults that belong to this name."""
    check_options(name, options)
    return {**_entry(name).defaults, **options}


def _entry(name: str) -> _Entry:
    if name not in _ATTENTIONS:
        raise ValueError(f"there is no attention {name!r}: {hint(name, _ATTENTIONS)}")
    return _ATTENTIONS[name]


def _options(attention: type[GridAttention]) -> set[str]:
    return set(inspect.signature(attention).parameters) - {"dim", "num_heads", "grid_size"}


def _identity(attention: type) -> tuple[str, str]:
    return attention.__module__, attention.__qualname__


register_attention("focused")(FocusedLinearAttentionCore)
# Two that are focused attention with switches: the "vanilla linear attention" of FLatten's ablation, and, with a convolution,
# the enhanced linear attention of EfficientViT (Cai et al., ICCV 2023, arXiv 2205.14756) as FLatten compares it.
_PLAIN: dict[str, Any] = {"focusing_factor": 1.0, "key_encoding": False, "temperature": False}
register_attention("relu", **_PLAIN, rank_restoration=False)(FocusedLinearAttentionCore)
register_attention("enhanced", **_PLAIN)(FocusedLinearAttentionCore)
register_attention("elu")(EluAttention)
register_attention("hydra")(HydraAttention)
register_attention("efficient")(EfficientAttention)
register_attention("angular", rank_restoration=True)(AngularAttention)
register_attention("agent")(AgentAttention)
register_attention("inline")(InLineAttention)
register_attention("polaformer")(PolaFormerAttention)
register_attention("softmax")(SoftmaxAttention)
