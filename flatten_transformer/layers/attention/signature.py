"""Explicit signatures for attentions that pass options on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_POSITIONAL = ("dim", "num_heads", "grid_size")


def signature_of(attention: type[nn.Module], shared: Mapping[str, Any], defaults: Mapping[str, Any]) -> inspect.Signature:
    """Return the signature with each option by name: those of the class and its bases, then the shared ones.

    A class whose ``__init__`` has no ``**options`` passes nothing on, so nothing is added to its own.

    Args:
        attention: The class.
        shared: Annotations of the options of every attention, by name.
        defaults: Their defaults in this class.
    """
    listed: dict[str, inspect.Parameter] = {}
    for base in attention.__mro__:
        if base is nn.Module:
            listed |= {name: keyword(name, kind, defaults[name]) for name, kind in shared.items() if name not in listed}
            break
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        named = [p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        listed |= {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in named if p.name not in listed}
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    positional = [
        listed.pop(name).replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in _POSITIONAL if name in listed
    ]
    return inspect.Signature([*positional, *listed.values()], return_annotation="None")


def keyword(name: str, annotation: Any, default: object) -> inspect.Parameter:
    """Return a keyword argument with an annotation of a TypedDict."""
    written = getattr(annotation, "__forward_arg__", annotation)  # a TypedDict wraps a postponed annotation
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=written)
