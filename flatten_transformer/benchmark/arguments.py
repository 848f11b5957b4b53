"""Parsers of benchmark arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from flatten_transformer.benchmark.contenders import Shape
from flatten_transformer.benchmark.race import Limits
from flatten_transformer.utils.suggest import did_you_mean

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
_MAX_TOKENS = 2**24
_QUICK_BUDGET_S = 0.5


def words(text: str, name: str, allowed: Iterable[str]) -> list[str]:
    """Return the words of a comma-separated list.

    Raises:
        ValueError: If a word is not allowed, or the list is empty.

    Example:
        >>> words("float32, bfloat16", "dtypes", DTYPES)
        ['float32', 'bfloat16']
    """
    allowed = list(allowed)
    result = [word.strip() for word in text.split(",") if word.strip()]
    if not result:
        raise ValueError(f"{name} is empty: choose some of {', '.join(allowed)}, separated by commas")
    for word in result:
        if word not in allowed:
            raise ValueError(f"{name} holds {word!r}: {did_you_mean(word, allowed)}")
    return list(dict.fromkeys(result))


def words_or_all(text: str, name: str, allowed: Iterable[str]) -> list[str] | None:
    """Return the result of :func:`words`, or None for ``all``."""
    return None if text == "all" else words(text, name, allowed)


def parse_dtypes(text: str | None, device: torch.device) -> list[torch.dtype]:
    """Return the dtypes of a comma-separated list; by default bfloat16 on a GPU, float32 elsewhere."""
    default = "bfloat16" if device.type == "cuda" else "float32"
    return [DTYPES[name] for name in words(text or default, "dtypes", DTYPES)]


def limits(budget_s: float, limit_s: float, quick: bool) -> Limits:
    """Return the limits of a race, cut to half a second for a quick one."""
    return Limits(min(budget_s, _QUICK_BUDGET_S) if quick else budget_s, limit_s)


def integers(text: str, name: str, maximum: int = _MAX_TOKENS, minimum: int = 1) -> list[int]:
    """Return the integers of a comma-separated list.

    Raises:
        ValueError: If it holds anything else.

    Example:
        >>> integers("49,1_024", "tokens")
        [49, 1024]
    """
    try:
        result = [int(word) for word in text.split(",")]
    except ValueError:
        result = []
    if not result or not all(minimum <= number <= maximum for number in result):
        numbers = f"whole numbers from {minimum} to {maximum}, separated by commas, such as 196,784"
        raise ValueError(f"{name} must be {numbers}; got {text!r}")
    return list(dict.fromkeys(result))


def shapes(text: str) -> list[Shape]:
    """Return the shapes of a comma-separated list, each batch x height x width x channels x heads.

    Raises:
        ValueError: If a shape has another form, or its heads do not divide its channels.

    Example:
        >>> shapes("16x14x14x192x3")
        [Shape(batch=16, height=14, width=14, channels=192, heads=3)]
    """
    result = []
    for word in text.split(","):
        if not re.fullmatch(r"\s*[1-9]\d*(x[1-9]\d*){4}\s*", word):
            raise ValueError(
                f"a shape is BATCHxHEIGHTxWIDTHxCHANNELSxHEADS, such as 16x14x14x192x3, shapes separated by commas; got {word!r}"
            )
        result.append(Shape(*map(int, word.split("x"))))
        check_heads(result[-1].channels, result[-1].heads)
    return list(dict.fromkeys(result))


def check_heads(channels: int, heads: int) -> None:
    """Raise ValueError unless the heads divide the channels."""
    if heads < 1 or channels < 1 or channels % heads:
        raise ValueError(
            f"channels must be a multiple of heads, got {channels} channels and {heads} heads: choose 192 and 3, say"
        )


def check_positive(**values: float) -> None:
    """Raise ValueError unless all values, named like their options, are above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")
