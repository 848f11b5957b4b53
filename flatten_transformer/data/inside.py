"""Files that a data set names: opened only where they lie within it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flatten_transformer.printable import printable


def lies_under(path: str | Path, folder: str | Path) -> bool:
    """Tell whether a path, as it is written, leads to something within a folder.

    Example:
        >>> lies_under("images/a/../b.jpg", "images"), lies_under("images/../b.jpg", "images")
        (True, False)
    """
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), ""))


def check_file(path: Path, folders: Sequence[Path] | None) -> None:
    """Raise an error unless a path may be opened; one that leads nowhere may, and says so itself.

    Args:
        path: Of a file that a data set names, or that lies in its folder.
        folders: Where links may lead to; None for anywhere.

    Raises:
        ValueError: If it is a pipe or a device, or a link that leads elsewhere.
    """
    real = os.path.realpath(path)
    if folders is not None and not any(lies_under(real, os.path.realpath(folder)) for folder in folders):
        cure = "put the file itself there, or allow it: --data.outside_links true"
        raise ValueError(f"{printable(str(path))} leads out of its data set, to {printable(real)}: {cure}")
    if os.path.exists(real) and not os.path.isfile(real) and not os.path.isdir(real):
        raise ValueError(f"{printable(str(path))} is a pipe or a device, not an image: leave it out")
