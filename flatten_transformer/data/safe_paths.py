"""Files that a data set names: opened only where they lie within it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flatten_transformer.utils.printable import printable


def lies_under(path: str | Path, folder: str | Path) -> bool:
    """Tell whether a path, as it is written, leads to something within a folder.

    Example:
        >>> lies_under("images/a/../b.jpg", "images"), lies_under("images/../b.jpg", "images")
        (True, False)
    """
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), ""))


def check_place(path: Path, folders: Sequence[Path] | None) -> None:
    """Raise an error unless a file lies where its data set may look for files.

    Args:
        path: Of a file that a data set names, or that lies in its folder.
        folders: Where links may lead to; None for anywhere.

    Raises:
        ValueError: If it is a link that leads elsewhere.
    """
    if folders is None:
        return
    real = os.path.realpath(path)
    if not any(lies_under(real, os.path.realpath(folder)) for folder in folders):
        cure = "put the file itself there, or allow it: --data.outside_links true"
        raise ValueError(f"{printable(str(path))} leads out of its data set, to {printable(real)}: {cure}")
