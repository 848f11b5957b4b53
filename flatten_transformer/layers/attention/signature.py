"""Explicit signatures for attentions that pass options on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_PLACES = ("dim", "num_heads", "grid_size")


def signature_of(attention: type[nn.Module], shared: Mapping[str, Any], defaults: Mapping[str, Any]) -> inspect.Signature:
    """Return the signature with each option by name: those of the class and its bases, then the shared ones.

    A class whose ``__init__`` has no ``**options`` passes nothing on, so nothing is added to its own.

    Args:
        attention: The class.
        shared: Annotations of the options that the base of all attentions takes, by name.
        defaults: Their values in this class.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in attention.__mro__:
        if base is nn.Module:
            found |= {name: _keyword(name, hint, defaults[name]) for name, hint in shared.items() if name not in found}
            break
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        named = [p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found |= {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in named if p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    places = [found.pop(name).replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in _PLACES if name in found]
    return inspect.Signature([*places, *found.values()], return_annotation="None")


def _keyword(name: str, annotation: Any, default: object) -> inspect.Parameter:
    written = getattr(annotation, "__forward_arg__", annotation)  # a TypedDict wraps the words of a postponed annotation
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=written)
