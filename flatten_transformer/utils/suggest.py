"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, names: Iterable[str], groups: Iterable[str] | None = None) -> str:
    """Return the close matches of an unknown name, or every choice if there are few.

    Args:
        given: Unknown name.
        names: Known names.
        groups: Listed instead of many names.

    Example:
        >>> did_you_mean("tset", ["fit", "test"])
        'did you mean test?'
        >>> did_you_mean("x", ["fit", "test"])
        'choose one of fit, test'
        >>> did_you_mean("x", ["fit", "test", "predict"], ["training", "using"])
        'choose one of training, using'
    """
    names = list(names)
    close = difflib.get_close_matches(given, names, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    listed = list(groups or names)
    return f"choose one of {', '.join(listed)}" if len(listed) <= 20 else f"none of {len(names)} names is like it"
