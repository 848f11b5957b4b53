"""The cure at the end of an error message about a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(came: str, names: Iterable[str]) -> str:
    """Return what the user may have meant, or all there is if it is not much.

    Example:
        >>> hint("tset", ["fit", "test"])
        'did you mean test?'
        >>> hint("x", ["fit", "test"])
        'choose one of fit, test'
    """
    names = list(names)
    close = difflib.get_close_matches(came, names, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose one of {', '.join(names)}" if len(names) <= 20 else f"none of {len(names)} names is like it"
