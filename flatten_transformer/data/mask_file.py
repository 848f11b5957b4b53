"""Read the class numbers in a mask file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatten_transformer.data.preprocessing import read_image

_LOSSY = (b"\xff\xd8\xff", b"RIFF", b"\xff\x0a")  # JPEG, WebP, JPEG XL
_STRETCHED = {2: 85, 4: 17}  # Pillow's factor for greyscale by bit depth


def read_mask(path: Path) -> NDArray[Any]:
    """Return the numbers in a mask, ``[height, width]``: palette indices, or greyscale values of 1 to 16 bits.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image, is in colour, has transparency, or is lossily compressed.
    """
    mask, head = read_image(path), _head(path)
    if head.startswith(_LOSSY) or head[4:8] == b"ftyp":
        raise ValueError(f"the mask {path} is a JPEG or the like, which changes the numbers of classes: save it as PNG")
    if mask.mode == "1":
        return np.asarray(mask).astype(np.uint8)
    if mask.mode not in ("L", "P") and not mask.mode.startswith("I"):
        what = "grey with transparency" if mask.mode in ("LA", "La", "PA") else "in colour"
        raise ValueError(
            f"the mask {path} is {what} ({mask.mode}), which names no class: save it as a PNG of one channel or with a "
            f"palette, whose values are the numbers of the classes"
        )
    return np.asarray(mask) // _stretch(head)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(26)


def _stretch(head: bytes) -> int:
    """Return the factor by which Pillow scales the values of a greyscale PNG."""
    is_grey_png = head.startswith(b"\x89PNG\r\n\x1a\n") and head[25:26] == b"\0"
    return _STRETCHED.get(head[24], 1) if is_grey_png else 1
