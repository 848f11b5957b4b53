"""Suggest what was meant by a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(given: str, names: Iterable[str], groups: Iterable[str] | None = None) -> str:
    """Return what the user may have meant, or all there is if it is not much.

    Args:
        given: The name that was given.
        names: The names that exist.
        groups: What to list instead of many names.

    Example:
        >>> hint("tset", ["fit", "test"])
        'did you mean test?'
        >>> hint("x", ["fit", "test"])
        'choose one of fit, test'
        >>> hint("x", ["fit", "test", "predict"], ["training", "using"])
        'choose one of training, using'
    """
    names = list(names)
    close = difflib.get_close_matches(given, names, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    listed = list(groups or names)
    return f"choose one of {', '.join(listed)}" if len(listed) <= 20 else f"none of {len(names)} names is like it"
