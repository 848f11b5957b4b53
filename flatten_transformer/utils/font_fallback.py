"""Font fallback for names from files: any script with an installed font, on one line, never parsed as mathtext."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

from PIL import ImageDraw, ImageFont

from flatten_transformer.utils.printable import printable

_MAX_LENGTH = 40  # characters of a name
_SAMPLE_PX = 16
_ABSENT = "\uffff"  # in no font: drawn as the glyph of missing characters
_BOXES = "Last Resort"  # name prefix of a font that has a box for everything
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def shortened(text: str, max_length: int = _MAX_LENGTH) -> str:
    r"""Return text on one line without control characters, its middle cut out if it is too long.

    Args:
        text: A name from a file.
        max_length: In characters.

    Example:
        >>> shortened("a\nb"), shortened("0123456789", 6)
        ('a\\nb', '012…89')
    """
    line = printable(_ends(text, max_length))
    end = (max_length - 1) // 2
    return line if len(line) <= max_length else f"{line[: max_length - 1 - end]}…{line[-end:]}"


def _ends(text: str, max_length: int) -> str:
    return text[: 2 * max_length] + text[2 * max_length :][-2 * max_length :]


class FallbackFonts:
    r"""Fonts by character: each is drawn by a font that has it, or as its code where none has.

    Args:
        texts: Names from files.

    Example:
        >>> fonts = FallbackFonts(["a $x$\n"])
        >>> print(fonts.plot("a $x$\n"))
        a \$x\$\n
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._fonts = _find_fonts(frozenset("".join(printable(_ends(text, _MAX_LENGTH)) for text in texts)))

    def legible(self, text: str, max_length: int = _MAX_LENGTH) -> str:
        r"""Return text shortened, with characters that no installed font has as codes, such as ``\u4e2d``."""
        return shortened("".join(map(self._drawable, printable(_ends(text, max_length)))), max_length)

    def _drawable(self, character: str) -> str:
        if self._fonts.get(character, "") is not None:
            return character
        if unicodedata.category(character) in ("Cf", "Mn"):  # joiners and variation selectors
            return ""
        return character.encode("unicode_escape").decode()

    def plot(self, text: str, max_length: int = _MAX_LENGTH) -> str:
        """Return text for matplotlib, with mathtext escaped."""
        return self.legible(text, max_length).replace("$", r"\$")

    @contextmanager
    def styled(self) -> Iterator[None]:
        """Let matplotlib use these fonts."""
        from matplotlib import rc_context, rcParams

        more = [family for family in dict.fromkeys(self._fonts.values()) if family]
        families = [*rcParams["font.family"], *(_family(path) for path in more)]
        with rc_context({"font.family": families, "text.usetex": False, "text.parse_math": True}):
            yield

    def box(self, text: str, size: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom in pixels of a legible text with its baseline origin at 0, 0.

        Args:
            text: From :meth:`legible`.
            size: Font size in pixels.
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
            canvas: Drawn on.
            place: Baseline origin in pixels.
            text: From :meth:`legible`.
            size: Font size in pixels.
            fill: Text colour.
        """
        x, y = place
        for path, piece in self._pieces(text):
            font = _pil_font(path, size)
            canvas.text((x, y), piece, font=font, fill=fill, anchor="ls")
            x += font.getlength(piece)

    def _pieces(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield runs of characters of one font, each with the path of the font, "" for the default one."""
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
    """Return a font path for each character that default fonts may lack; None where no installed font has it."""
    fonts: dict[str, str | None] = {}
    left = {each for each in characters if not each.isascii() and each != "…" and unicodedata.category(each) != "Zs"}
    for path in _installed():
        if not left:
            break
        has = {character for character in left if _has(path, character)}
        fonts |= dict.fromkeys(has, path)
        left -= has
    return fonts | dict.fromkeys(left)


@cache
def _installed() -> tuple[str, ...]:
    """Return the paths of the installed fonts: matplotlib's own DejaVu Sans first, then regular ones."""
    if find_spec("matplotlib") is None:
        return ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf")  # found by Pillow, if installed
    from matplotlib.font_manager import fontManager

    fonts = [font for font in fontManager.ttflist if not font.name.startswith(_BOXES)]
    plain = sorted(fonts, key=lambda f: (f.name != "DejaVu Sans", f.style != "normal", f.weight not in (400, "normal"), f.fname))
    return tuple(dict.fromkeys(font.fname for font in plain))


def _has(path: str, character: str) -> bool:
    try:
        font = ImageFont.truetype(path, _SAMPLE_PX, layout_engine=ImageFont.Layout.BASIC)
        drawn, absent = font.getmask(character), font.getmask(_ABSENT)
    except (OSError, ValueError):  # damaged, or a bitmap font
        return False
    return (drawn.size, bytes(drawn)) != (absent.size, bytes(absent))


def _family(path: str) -> str:
    from matplotlib.font_manager import fontManager

    return next(font.name for font in fontManager.ttflist if font.fname == path)


@lru_cache(maxsize=256)
def _pil_font(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
