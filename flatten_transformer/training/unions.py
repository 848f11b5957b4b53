"""Options of several types, which read the same text as the same type whatever was imported first."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser

# "1" is one batch and "1.0" all of them; "00:12:00:00" is half a day to Lightning, 12 minutes as a timedelta; "true" is a file
_FIRST = (bool, int, float, str, timedelta, Path)
_AMBIGUOUS = ({int, float}, {str, timedelta}, {bool, Path})


def fix_order_of_types(parser: ArgumentParser) -> None:
    """Let options try whole numbers before fractions, text before durations, and truth before files.

    A command line takes the first type that fits, but typing caches unions, which are equal in any order:
    ``Optional[Union[int, float]]`` is the ``Union[float, int, None]`` that another library has made before.

    Args:
        parser: Parser with all of its options.

    Example:
        >>> parser = ArgumentParser()
        >>> _ = parser.add_argument("--limit", type=float | int)
        >>> parser.parse_args(["--limit", "1"]).limit
        1.0
        >>> fix_order_of_types(parser)
        >>> parser.parse_args(["--limit", "1"]).limit, parser.parse_args(["--limit", "1.0"]).limit
        (1, 1.0)
    """
    for action in parser._actions:
        hint: Any = getattr(action, "_typehint", None)  # of jsonargparse, which has no public name for it
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
        if any(pair <= {kind for kind in members if isinstance(kind, type)} for pair in _AMBIGUOUS):
            # flat, so that the cache knows it by its order
            action._typehint = Union[tuple(sorted(members, key=_rank))]  # type: ignore[attr-defined]  # noqa: UP007


def _rank(kind: Any) -> int:
    if kind is NoneType:
        return len(_FIRST) + 1
    return _FIRST.index(kind) if kind in _FIRST else len(_FIRST)
