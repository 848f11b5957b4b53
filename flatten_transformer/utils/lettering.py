"""Draw names from files in pictures: any script that an installed font has, on one line, never taken for mathematics."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

from PIL import ImageDraw, ImageFont

from flatten_transformer.utils.printable import printable

_MOST = 40  # characters of a name
_SAMPLE_PX = 16
_ABSENT = "\uffff"  # no font has it: what is drawn instead of a missing character
_BOXES = "Last Resort"  # begins the name of a font that has a box for everything
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def shortened(text: str, most: int = _MOST) -> str:
    r"""Return text in one line without control characters, at most so many characters: the beginning and the end.

    Args:
        text: A name from a file.
        most: Characters.

    Example:
        >>> shortened("a\nb"), shortened("0123456789", 6)
        ('a\\nb', '012…89')
    """
    line = printable(_seen(text, most))
    end = (most - 1) // 2
    return line if len(line) <= most else f"{line[: most - 1 - end]}…{line[-end:]}"


def _seen(text: str, most: int) -> str:
    return text[: 2 * most] + text[2 * most :][-2 * most :]


class Lettering:
    r"""Fonts for some texts, so that each character is drawn by one that has it; what none has is drawn as its code.

    Args:
        texts: Names from files.

    Example:
        >>> lettering = Lettering(["a $x$\n"])
        >>> print(lettering.plot("a $x$\n"))
        a \$x\$\n
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._fonts = _find_fonts(frozenset("".join(printable(_seen(text, _MOST)) for text in texts)))

    def legible(self, text: str, most: int = _MOST) -> str:
        r"""Return text shortened, and characters that no font here has as their code, such as ``\u4e2d``."""
        return shortened("".join(map(self._drawable, printable(_seen(text, most)))), most)

    def _drawable(self, character: str) -> str:
        if self._fonts.get(character, "") is not None:
            return character
        if unicodedata.category(character) in ("Cf", "Mn"):  # joiners and variations of what stands before
            return ""
        return character.encode("unicode_escape").decode()

    def plot(self, text: str, most: int = _MOST) -> str:
        """Return text for matplotlib, whose signs of mathematics are signs again."""
        return self.legible(text, most).replace("$", r"\$")

    @contextmanager
    def styled(self) -> Iterator[None]:
        """Let matplotlib draw with these fonts."""
        from matplotlib import rc_context, rcParams

        more = [family for family in dict.fromkeys(self._fonts.values()) if family]
        families = [*rcParams["font.family"], *(_family(path) for path in more)]
        with rc_context({"font.family": families, "text.usetex": False, "text.parse_math": True}):
            yield

    def box(self, text: str, size: int) -> tuple[float, float, float, float]:
        """Return the left, top, right and bottom in pixels of a legible text whose base line begins at 0, 0.

        Args:
            text: From :meth:`legible`.
            size: Size of the letters in pixels.
        """
        boxes, x = [(0.0, 0.0, 0.0, 0.0)], 0.0
        for path, piece in self._pieces(text):
            font = _pil_font(path, size)
            left, top, right, bottom = font.getbbox(piece, anchor="ls")
            boxes.append((x + left, top, x + right, bottom))
            x += font.getlength(piece)
        lefts, tops, rights, bottoms = zip(*(boxes[1:] or boxes), strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def draw(self, canvas: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: Any) -> None:
        """Draw a legible text on an image.

        Args:
            canvas: What is drawn on.
            place: Where its base line begins, in pixels.
            text: From :meth:`legible`.
            size: Size of the letters in pixels.
            fill: Their colour.
        """
        x, y = place
        for path, piece in self._pieces(text):
            font = _pil_font(path, size)
            canvas.text((x, y), piece, font=font, fill=fill, anchor="ls")
            x += font.getlength(piece)

    def _pieces(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield runs of characters of one font, each with the path of the font, "" for the usual one."""
        start, before = 0, ""
        for place, character in enumerate(text):
            path = self._fonts.get(character) or ""
            if unicodedata.combining(character) or character in "\u200c\u200d":
                path = before
            if path != before and place > start:
                yield before, text[start:place]
                start = place
            before = path
        if start < len(text):
            yield before, text[start:]


@lru_cache(maxsize=64)
def _find_fonts(characters: frozenset[str]) -> dict[str, str | None]:
    """Return the path of a font for each character that the usual fonts may lack; None where no font here has it."""
    found: dict[str, str | None] = {}
    left = {each for each in characters if not each.isascii() and each != "…" and unicodedata.category(each) != "Zs"}
    for path in _installed():
        if not left:
            break
        has = {character for character in left if _has(path, character)}
        found |= dict.fromkeys(has, path)
        left -= has
    return found | dict.fromkeys(left)


@cache
def _installed() -> tuple[str, ...]:
    """Return the paths of the fonts of this machine, plain ones first; of matplotlib's own DejaVu Sans before all."""
    if find_spec("matplotlib") is None:
        return ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf")  # where Pillow looks, if they are there
    from matplotlib.font_manager import fontManager

    fonts = [font for font in fontManager.ttflist if not font.name.startswith(_BOXES)]
    plain = sorted(fonts, key=lambda f: (f.name != "DejaVu Sans", f.style != "normal", f.weight not in (400, "normal"), f.fname))
    return tuple(dict.fromkeys(font.fname for font in plain))


def _has(path: str, character: str) -> bool:
    try:
        font = ImageFont.truetype(path, _SAMPLE_PX, layout_engine=ImageFont.Layout.BASIC)
        drawn, absent = font.getmask(character), font.getmask(_ABSENT)
    except (OSError, ValueError):  # damaged, or of fixed sizes
        return False
    return (drawn.size, bytes(drawn)) != (absent.size, bytes(absent))


def _family(path: str) -> str:
    from matplotlib.font_manager import fontManager

    return next(font.name for font in fontManager.ttflist if font.fname == path)


@lru_cache(maxsize=256)
def _pil_font(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
