"""Confine the files that a data set refers to, and the targets of its links, to its own folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flatten_transformer.utils.printable import printable


def lies_under(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path lies below a folder, links not resolved.

    Example:
        >>> lies_under("images/a/../b.jpg", "images"), lies_under("images/../b.jpg", "images")
        (True, False)
    """
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), ""))


def check_inside(path: Path, folders: Sequence[Path] | None) -> None:
    """Raise unless a file, links resolved, lies in one of the allowed folders.

    Args:
        path: File of a data set.
        folders: Allowed folders; None for any.

    Raises:
        ValueError: If it is a link to somewhere else.
    """
    if folders is None:
        return
    real = os.path.realpath(path)
    if not any(lies_under(real, os.path.realpath(folder)) for folder in folders):
        cure = "put the file itself there, or allow it: --data.outside_links true"
        raise ValueError(f"{printable(str(path))} leads out of its data set, to {printable(real)}: {cure}")
