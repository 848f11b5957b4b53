"""Strict, typed parsing of untrusted JSON into dataclasses, with one-line errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Fields = TypeVar("Fields")
_MAX_DIGITS = 18  # of an integer, to fit 64 bits


def read_json(text: str) -> Any:
    """Parse standard JSON without duplicate keys.

    Raises:
        ValueError: If it is not JSON, repeats a key, holds NaN, infinity or a number beyond 64 bits, or is nested too deep.

    Example:
        >>> read_json('{"depth": 1, "depth": 2}')
        Traceback (most recent call last):
        ValueError: the key 'depth' is there twice
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite, parse_int=_int)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} is there twice")
        result[key] = value
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{text[:20]} is too large a number")
    return int(text)


def read_fields(kind: type[Fields], values: object, what: str) -> Fields:
    """Build a dataclass from values of a file or recipe, checked against the annotations of its fields.

    Args:
        kind: Dataclass.
        values: Values by field name.
        what: Name of the values in messages.

    Raises:
        ValueError: If a value is unknown, missing or of the wrong type, or the dataclass rejects it.

    Example:
        >>> from flatten_transformer.tasks.classification.preprocessing import Preprocessing
        >>> read_fields(Preprocessing, {"img_size": "32", "in_chans": 1, "mean": [0], "std": [1]}, "preprocessing")
        Traceback (most recent call last):
        ValueError: preprocessing.img_size must be int, got '32'
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must hold values by name, got {shown(values)}")
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{what} has no {shown(unknown[0])}, only {', '.join(known)}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{what}.{name} is missing")
        if name in values and not fits(values[name], hints[name]):
            raise ValueError(f"{what}.{name} must be {_named(hints[name])}, got {shown(values[name])}")
    return kind(**values)


def fits(value: object, hint: Any) -> bool:
    """Return whether a value fits an annotation; numbers must be finite, a bool is no number, a list may be a tuple.

    Example:
        >>> fits([0.5, 1], tuple[float, ...]), fits(True, int), fits(None, int | None)
        (True, False, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is dict:
        return isinstance(value, dict) and all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items())
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(each, inner[0]) for each in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def shown(value: object) -> str:
    """Return a shortened repr of a value, for messages.

    Example:
        >>> shown("x" * 1000)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"
    """
    if isinstance(value, (dict, list, tuple)) and len(value) > 20:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 61 else f"{text[:61]}…"


def _named(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint)) if get_origin(hint) is None else str(hint).replace("collections.abc.", "")
