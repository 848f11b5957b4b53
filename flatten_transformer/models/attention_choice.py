"""Attention of the linear blocks: the keywords of every family, and the factory they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypedDict, TypeVar

from torch import nn

from flatten_transformer.layers import GridAttention, create_attention
from flatten_transformer.layers.attention.registry import check_options
from flatten_transformer.layers.attention.signature import keyword
from flatten_transformer.ops.dispatch import Backend, check_backend

Init = TypeVar("Init", bound=Callable[..., None])

# options of an attention that every family sets itself
_SET_BY_MODELS = {
    *("context_dim", "device", "dtype", "num_prefix_tokens", "proj_bias", "proj_drop", "projections", "qkv_bias", "sr_ratio")
}


class AttentionOptions(TypedDict, total=False):
    """Keywords of every family; by default its linear blocks attend by focused linear attention as published.

    Args:
        attention: Attention of the linear blocks: one of :func:`flatten_transformer.layers.list_attentions`.
        attention_args: Its options, such as ``{"rank_restoration": False}``.
        focusing_factor: The power p ≥ 1 of the focused function; None: the attention's default, 3 for the focused one.
        kernel_size: Side of the depthwise convolution that restores the rank; odd. None: the attention's default, 5
            for the focused one.
        backend: Backend of the focused linear attention, see :func:`flatten_transformer.focused_linear_attention`.
    """

    attention: str
    attention_args: Mapping[str, Any] | None
    focusing_factor: float | None
    kernel_size: int | None
    backend: Backend | None


def lists_attention_options(init: Init) -> Init:
    """Decorate a family's ``__init__`` so that ``help`` and notebooks list the attention keywords in its ``**kwargs``."""
    signature, defaults = inspect.signature(init), {"attention": "focused"}  # None for the others
    *named, rest = signature.parameters.values()
    keywords = (keyword(name, kind, defaults.get(name)) for name, kind in AttentionOptions.__annotations__.items())
    others = [] if "AttentionOptions" in rest.annotation else [rest]
    init.__signature__ = signature.replace(parameters=[*named, *keywords, *others])  # type: ignore[attr-defined]
    return init


def pop_attention_options(kwargs: dict[str, Any]) -> AttentionOptions:
    """Remove the attention keywords from ``kwargs``, leaving those of timm's host, and return them.

    Example:
        >>> kwargs = {"attention": "elu", "depth": 2}
        >>> pop_attention_options(kwargs), kwargs
        ({'attention': 'elu'}, {'depth': 2})
    """
    options: Any = {name: kwargs.pop(name) for name in AttentionOptions.__optional_keys__ & kwargs.keys()}
    return options


def choose_attention(model: type[nn.Module], options: AttentionOptions, **own: Any) -> partial[GridAttention]:
    """Return the factory of the linear blocks' attention, called with ``dim``, ``num_heads`` and ``grid_size``.

    Args:
        model: Class of the model.
        options: Keywords given to the model.
        own: Options that the model sets for all blocks.

    Raises:
        TypeError: For an unknown keyword.
        ValueError: If there is no such attention, it has no such option, or an option is given twice or is the model's.

    Example:
        >>> choose_attention(nn.Module, {"attention_args": {"norm": "per_head"}, "focusing_factor": 4}).keywords
        {'norm': 'per_head', 'focusing_factor': 4}
    """
    unknown = options.keys() - AttentionOptions.__optional_keys__
    if unknown:
        raise TypeError(f"{model.__name__}.__init__() got an unexpected keyword argument {min(unknown)!r}")
    check_backend(options.get("backend"))
    given: object = options.get("attention_args") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f'attention_args must hold options by name, such as {{"rank_restoration": False}}, got {given!r}')
    chosen = dict(given)
    for option, value in options.items():
        if option in ("attention", "attention_args") or value is None:
            continue
        if option in chosen:
            raise ValueError(f"{option} is {value!r} and, in attention_args, {chosen[option]!r}: give it once")
        chosen[option] = value
    taken = sorted(chosen.keys() & (_SET_BY_MODELS | own.keys()))
    if taken:
        raise ValueError(f"attention_args must not hold {taken[0]}: the model sets it; {_cure(taken[0], model)}")
    attention = options.get("attention", "focused")
    check_options(attention, chosen)
    return partial(create_attention, attention, **own, **chosen)


def _cure(option: str, model: type[nn.Module]) -> str:
    """Return the cure for an attention option that the model sets itself."""
    keywords = {name for base in model.__mro__ for name in inspect.signature(base.__init__).parameters}  # type: ignore[misc]
    named = [name for name in (option, f"{option}_rate", f"{option}s") if name in keywords]
    return f"pass {named[0]} to the model" if named else "leave it out"
