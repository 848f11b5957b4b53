"""Folders of runs: ``version_0``, ``version_1`` … in ``runs/<recipe>``, or by name: ``<name>``, ``<name>_2`` …."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flatten_transformer.training.recipes import recipe_folder

_STARTED = ("config.yaml", "hparams.yaml", "events.out.tfevents.*")  # written before anything is learned
_MAX_NAME = 240  # bytes: file systems take 255, a number may follow
_NAME = re.compile(r"(?!version_\d+$)[^/\\\x00-\x1f]+")


@dataclass(frozen=True)
class Place:
    """Where the runs of a recipe and name lie.

    Args:
        recipe: The recipe, or the configuration of an earlier run.
        name: Name of the runs; None for those without a name.
        root: Folder of all runs.
    """

    recipe: Path
    name: str | None
    root: Path

    @property
    def folder(self) -> Path:
        """The folder of all runs of the recipe."""
        return folder_of_recipe(self.recipe, self.root)

    @property
    def named(self) -> list[Path]:
        """The runs of that name, newest first."""
        return runs_of(self.folder, self.name)

    @property
    def runs(self) -> list[Path]:
        """The runs that are meant, newest first: the one whose configuration is given, or those of that name."""
        return [self.recipe.parent] if is_of_run(self.recipe) else self.named

    def __str__(self) -> str:
        if is_of_run(self.recipe):
            return str(self.recipe.parent)
        others = [other for other in names_of(self.folder) if other != self.name]
        hint = f" (there is --name {', '.join(others[:3])})" if others else ""
        return f"{self.folder / (self.name or 'version_*')}{hint}"


def folder_of_recipe(config: Path, root: Path) -> Path:
    """Return the folder of the runs of a recipe.

    Args:
        config: The recipe, or the configuration of an earlier run.
        root: Folder of all runs.

    Example:
        >>> folder_of_recipe(recipe_folder() / "digits" / "flatten_deit.yaml", Path("runs")).as_posix()
        'runs/digits/flatten_deit'
        >>> folder_of_recipe(Path("mine.yaml"), Path("runs")).as_posix()
        'runs/mine'
    """
    config = config.resolve()
    if is_of_run(config):
        runs = config.parents[1]
        return root / (runs.relative_to(root.resolve()) if runs.is_relative_to(root.resolve()) else runs.name)
    if config.is_relative_to(recipe_folder()):
        return root / config.relative_to(recipe_folder()).with_suffix("")
    return root / config.stem


def is_of_run(config: Path) -> bool:
    """Return whether a configuration is that of an earlier run."""
    return config.name == "config.yaml"


def check_name(name: str) -> None:
    """Raise ValueError if a run cannot bear a name.

    Example:
        >>> check_name("a/b")
        Traceback (most recent call last):
        ValueError: --name must be the name of a new folder, not a path and not version_N, got 'a/b'
    """
    if not _NAME.fullmatch(name) or name.strip(" .") == "":
        raise ValueError(f"--name must be the name of a new folder, not a path and not version_N, got {name!r}")
    if len(os.fsencode(name)) > _MAX_NAME:
        raise ValueError(f"--name must have {_MAX_NAME} bytes at most, got {len(os.fsencode(name))}: {name[:20]}…")


def claim(runs: Path, name: str | None) -> Path:
    """Create and return the folder of a new run; safe between processes.

    Args:
        runs: Folder of the runs of a recipe.
        name: Name of the run; None for ``version_<number>``.

    Example:
        >>> runs = getfixture("tmp_path") / "digits"
        >>> [claim(runs, name).name for name in (None, "first", None, "first")]
        ['version_0', 'first', 'version_1', 'first_2']
    """
    for folder in _names(runs, name):
        with suppress(FileExistsError):
            folder.mkdir(parents=True)  # atomic: fails for all but one process
            return folder
    raise AssertionError("the names never end")


def _names(runs: Path, name: str | None) -> Iterator[Path]:
    if name is None:
        return (runs / f"version_{number}" for number in itertools.count())
    return itertools.chain([runs / name], (runs / f"{name}_{number}" for number in itertools.count(2)))


def runs_of(runs: Path, name: str | None) -> list[Path]:
    """Return the folders of the runs of a name, newest first.

    Args:
        runs: Folder of the runs of a recipe.
        name: Name of the runs; None for those without a name.

    Example:
        >>> runs = getfixture("tmp_path")
        >>> for folder in ("version_9", "version_10", "first", "first_2", "first_try"):
        ...     (runs / folder).mkdir()
        >>> [[folder.name for folder in runs_of(runs, name)] for name in (None, "first")]
        [['version_10', 'version_9'], ['first_2', 'first']]
    """
    pattern = re.compile(r"version_(\d+)" if name is None else rf"{re.escape(name)}(?:_(\d+))?")
    matches = [(match, folder) for folder in _subfolders(runs) if (match := pattern.fullmatch(folder.name))]
    return [folder for _, folder in sorted(((int(match[1] or 1), folder) for match, folder in matches), reverse=True)]


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def names_of(runs: Path) -> list[str]:
    """Return the names of the runs of a recipe that have one, newest first."""
    named = [folder for folder in _subfolders(runs) if (folder / "config.yaml").is_file() or (folder / "checkpoints").is_dir()]
    named = [folder for folder in named if not re.fullmatch(r"version_\d+", folder.name)]
    return [folder.name for folder in sorted(named, key=lambda folder: folder.stat().st_mtime, reverse=True)]


def discard_unused(folder: Path, root: Path) -> None:
    """Remove the folder of a run that failed before it learned anything, and those above it that are empty then.

    Args:
        folder: Folder of the run; one that holds anything else than its start stays as it is.
        root: Folder of all runs, the topmost to remove.

    Example:
        >>> root = getfixture("tmp_path") / "runs"
        >>> folder = claim(root / "digits", None)
        >>> (folder / "config.yaml").touch()
        >>> discard_unused(folder, root)
        >>> root.exists()
        False
    """
    started = {path for pattern in _STARTED for path in folder.glob(pattern)}
    with suppress(OSError):
        (folder / "checkpoints").rmdir()  # fails if there is a checkpoint
    if not folder.is_dir() or {*folder.iterdir()} - started:
        return
    for path in started:
        path.unlink()
    with suppress(OSError):  # above it, what is not empty stays
        for empty in (folder, *folder.parents):
            empty.rmdir()
            if empty == root:
                break
