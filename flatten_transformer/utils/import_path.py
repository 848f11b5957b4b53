"""Keep the working directory off ``sys.path``: files shipped with somebody's recipe may shadow any module.

A recipe may name every importable class. ``python -m`` puts the working directory first on the path, ``python -c`` and
notebooks an empty entry that means it. Users opt in by ``PYTHONPATH=.``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def without_working_directory() -> Iterator[None]:
    """Remove the empty entry of ``sys.path``, which means the working directory, within a ``with`` block.

    Example:
        >>> getfixture("monkeypatch").chdir(getfixture("tmp_path"))
        >>> sys.path.insert(0, "")
        >>> with without_working_directory():
        ...     "" in sys.path
        False
        >>> sys.path.pop(0)
        ''
    """
    place = sys.path.index("") if "" in sys.path and not _holds_this_library(".") else None
    if place is not None:
        del sys.path[place]
    try:
        yield
    finally:
        if place is not None:
            sys.path.insert(place, "")


def _holds_this_library(folder: str) -> bool:
    """Return whether this library runs from a folder, usually a clone of it."""
    return Path(folder).resolve() == Path(__file__).resolve().parents[2]


def _drop_working_directory() -> None:
    safe = sys.flags.isolated or getattr(sys.flags, "safe_path", False)  # then Python adds none
    with suppress(FileNotFoundError):  # the working directory was deleted
        if not safe and sys.path[:1] == [os.getcwd()] and not _holds_this_library(sys.path[0]):
            del sys.path[0]


def advice(module: str) -> str:
    """Return advice on a module that cannot be imported.

    Example:
        >>> advice("no_module_of_this_name")
        'install it or correct the name'
    """
    name = module.partition(".")[0]
    if not (Path(f"{name}.py").exists() or Path(name).is_dir()):
        return "install it or correct the name"
    return f"{name} in the working directory is not imported unasked: if you trust it, put PYTHONPATH=. before the command"


_RUN = {"flatten_transformer", "-mflatten_transformer"}
if sys.argv[:1] == ["-m"] and _RUN & {*sys.orig_argv}:  # before all other imports, while Python finds the module to run
    _drop_working_directory()
