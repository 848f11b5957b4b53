"""Writing a file so that nobody ever meets half of it."""

from __future__ import annotations

import io
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside ``path``, bring it to the disk, and only then give it the name; make missing folders.

    Example:
        >>> file = getfixture("tmp_path") / "folder" / "file"
        >>> write_atomically(file, b"whole")
        >>> file.read_bytes()
        b'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_png(path: Path, image: Image.Image) -> None:
    """Write an image as a PNG file, whole or not at all; make missing folders.

    Example:
        >>> from PIL import Image
        >>> file = getfixture("tmp_path") / "picture.png"
        >>> write_png(file, Image.new("L", (2, 3)))
        >>> with Image.open(file) as image:
        ...     image.size
        (2, 3)
    """
    content = io.BytesIO()
    image.save(content, "PNG")
    write_atomically(path, content.getvalue())
