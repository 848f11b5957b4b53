"""Escape text from files, to show it safely on a terminal."""

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


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in _HIDDEN and character not in _JOINERS
    return character.encode("unicode_escape").decode() if hidden else character
