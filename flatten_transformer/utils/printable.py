"""Text for a terminal: names from files escaped, things counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

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


def lasting(seconds: float) -> str:
    """Return a time to two digits or fewer.

    Example:
        >>> lasting(0.4), lasting(42.4), lasting(95), lasting(5000), lasting(90_000)
        ('1 s', '42 s', '2 min', '1.4 h', '25 h')
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text with their columns aligned, one line each.

    Example:
        >>> columns([("run", "best"), ("version_10", "5")])
        ['run         best', 'version_10  5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in _HIDDEN and character not in _JOINERS
    return character.encode("unicode_escape").decode() if hidden else character
