"""Nothing is imported from the working directory unasked: files that came with somebody's recipe may have any name.

A recipe may name every class that can be imported. ``python -m`` puts the working directory before all else that is
imported from, ``python -c`` and notebooks do as much with an empty entry. ``PYTHONPATH=.`` is how a user asks for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def without_working_directory() -> Iterator[None]:
    """Import nothing from the working directory meanwhile, where only the empty entry of ``sys.path`` stands for it.

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
    """Return whether a folder is the one this library runs from, a clone of it mostly: no stranger's."""
    return Path(folder).resolve() == Path(__file__).resolve().parents[2]


def _drop_the_entry_of_dash_m() -> None:
    safe = sys.flags.isolated or getattr(sys.flags, "safe_path", False)  # then there is none
    with suppress(FileNotFoundError):  # the working directory was deleted
        if not safe and sys.path[:1] == [os.getcwd()] and not _holds_this_library(sys.path[0]):
            del sys.path[0]


def advice(module: str) -> str:
    """Return what to do about a module that cannot be imported, in a few words.

    Example:
        >>> advice("no_module_of_this_name")
        'install it or correct the name'
    """
    name = module.partition(".")[0]
    if not (Path(f"{name}.py").exists() or Path(name).is_dir()):
        return "install it or correct the name"
    return f"{name} in the working directory is not imported unasked: if you trust it, put PYTHONPATH=. before the command"


_RUN = {"flatten_transformer", "-mflatten_transformer"}
if sys.argv[:1] == ["-m"] and _RUN & {*sys.orig_argv}:  # before all other imports, while Python looks for what to run
    _drop_the_entry_of_dash_m()
