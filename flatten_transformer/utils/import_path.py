"""Keep the working directory off ``sys.path``: files shipped with somebody's recipe may shadow any module.

A recipe may name every importable class. ``python -m`` puts the working directory first on the path, ``python -c`` and
notebooks an empty entry that means it. Users opt in by ``--import``, for one module, or ``PYTHONPATH=.``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from traceback import walk_tb


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
    return f"{name} in the working directory is not imported unasked: if you trust it, add --import {module}"


def take_imports(args: Sequence[str]) -> list[str]:
    """Import the modules that ``--import`` names, and return the other arguments.

    Args:
        args: Arguments after the command name.

    Raises:
        ValueError: If a module is missing or fails.

    Example:
        >>> take_imports(["photo.png", "--import", "json", "--top_k", "3"])
        ['photo.png', '--top_k', '3']
    """
    rest: list[str] = []
    left = list(args)
    while left:
        arg = left.pop(0)
        option, _, value = arg.partition("=")
        if option != "--import":
            rest.append(arg)
            continue
        if not value and not left:
            raise ValueError("--import needs the name of a module")
        import_named(value or left.pop(0), here=True)
    return rest


def import_named(name: str, *, here: bool) -> None:
    """Import a module for what it registers.

    Args:
        name: A module's name; with ``here``, the path of a ``.py`` file too.
        here: Look in the working directory last.

    Raises:
        ValueError: If it is missing or fails.

    Example:
        >>> import_named("no_module_of_this_name", here=True)
        Traceback (most recent call last):
        ValueError: there is no module 'no_module_of_this_name': install it or correct the name
    """
    if not name:
        raise ValueError("--import needs the name of a module, or of a .py file")
    file, module = Path(name), module_name(name)
    folder = str(file.parent.resolve()) if file.suffix == ".py" else os.getcwd()
    if here:
        sys.path.append(folder)  # for the modules beside it too
    try:
        import_module(module)
    except Exception as error:  # code of the user raises anything
        missing = isinstance(error, ModuleNotFoundError) and str(error.name) == module.partition(".")[0]
        if missing and not (here and file.exists()):
            raise ValueError(f"there is no module {name!r}: {advice(module)}") from error
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}{_place(error, module)}") from error
    finally:
        if here:
            sys.path.remove(folder)


def module_name(name: str) -> str:
    """Return the name of a module, given that or the path of its file.

    Example:
        >>> module_name("own/attention.py"), module_name("own.attention")
        ('attention', 'own.attention')
    """
    return Path(name).stem if name.endswith(".py") else name


def _place(error: BaseException, module: str) -> str:
    """Return where the user's own code failed."""
    lines = [number for frame, number in walk_tb(error.__traceback__) if frame.f_globals.get("__name__") == module]
    return f" (line {lines[-1]})" if lines else ""


_RUN = {"flatten_transformer", "-mflatten_transformer"}
if sys.argv[:1] == ["-m"] and _RUN & {*sys.orig_argv}:  # before all other imports, while Python finds the module to run
    _drop_working_directory()
