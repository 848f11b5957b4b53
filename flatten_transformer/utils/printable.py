"""Text for a terminal: names from files escaped, things counted."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (such as the direction of writing), surrogates, line ends
_JOINERS = "\u200c\u200d"  # format characters that Persian, Hindi and emoji need


def printable(text: str) -> str:
    r"""Escape control characters, as ``ls`` and git do.

    Example:
        >>> print(printable("cat\x1b[2J"))
        cat\x1b[2J
    """
    return "".join(_visible(character) for character in text)


def count(number: int | None, thing: str) -> str:
    """Return a number of things, in the singular or plural.

    Example:
        >>> count(1, "epoch"), count(1200, "epoch")
        ('1 epoch', '1,200 epochs')
    """
    return f"{number or 0:,} {thing}{'' if number == 1 else 's'}"


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in _HIDDEN and character not in _JOINERS
    return character.encode("unicode_escape").decode() if hidden else character
