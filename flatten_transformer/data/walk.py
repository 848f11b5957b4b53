"""Finding image files in folders: each file once, and a reason for whatever is left out."""

# n images.

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flatten_transformer.data.image_files import SUFFIXES, UNREAD
from flatten_transformer.data.source import LeftOut

Identity = tuple[object, ...]

HIDDEN = "hidden, or made by the system"
MADE_HERE = "made by this library (runs, predictions, analyses)"
NOT_AN_IMAGE = "no image that is read, by its suffix"
_LOOP = "link to a folder that is there already"
_BROKEN = "link that leads nowhere"
_NOT_A_FILE = "pipe or device"
_PYTHON = "Python environment"
_OF_THE_SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"}
_OF_THE_SYSTEM |= {"Thumbs.db", "desktop.ini", "Desktop.ini"}
_RUN_FILES = {"checkpoints", "config.yaml", "hparams.yaml", "metrics.csv"}
_OUTPUTS = (("detections.json",), ("overlays", "masks", "classes.txt"), ("report.html", "numbers.json"), ("scenes.json",))


class Found(NamedTuple):
    """An image file."""

    path: Path
    inode: int  # as its folder has it, 0 where a link led here


class Without(NamedTuple):
    """A file or folder that is left out; a folder's path ends with a slash."""

    reason: str
    path: str


class Walk(NamedTuple):
    """What lies in a folder and the folders in it."""

    images: list[Found]  # sorted by path
    left_out: list[Without]


class Listing(NamedTuple):
    """What lies in a folder itself."""

    folders: list[Path]
    images: list[Found]
    left_out: list[Without]


def walk(folder: Path) -> Walk:
    """Find the images in a folder and the folders in it; links are followed, but no folder is looked into twice.

    Left out are hidden files and folders, what is no image by its suffix, what is no file, and what this library made.

    Args:
        folder: Where to look.

    Raises:
        OSError: If a folder cannot be read.
    """
    found = Walk([], [])
    seen = _above(folder)
    waiting = [(folder, folder.is_symlink())]
    while waiting:
        parent, linked = waiting.pop()
        listing = look(parent, seen, linked)
        found.images.extend(listing.images)
        found.left_out.extend(listing.left_out)
        waiting += [(path, linked or path.is_symlink()) for path in reversed(listing.folders)]
    found.images.sort()
    return found


def look(folder: Path, seen: set[Identity] | None = None, linked: bool = False) -> Listing:
    """Tell the folders and images in a folder from what is left out.

    Args:
        folder: Where to look.
        seen: Folders that count already, to which those found are added; by default those that ``folder`` lies in,
            and none is added.
        linked: A link led here.

    Raises:
        OSError: If the folder cannot be read.
    """
    found, above = Listing([], [], []), _above(folder) if seen is None else seen
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        path, is_folder = folder / entry.name, entry.is_dir()
        reason = _reason(entry) or (is_folder and _reason_of_folder(path, above))
        if reason:
            found.left_out.append(Without(reason, f"{path}{'/' * is_folder}"))
        elif is_folder:
            found.folders.append(path)
            if seen is not None:
                seen.add(_identity(path))
        else:
            found.images.append(Found(path, 0 if linked or entry.is_symlink() else entry.inode()))
    return found


def _above(folder: Path) -> set[Identity]:
    """Return a folder and those that it lies in, by its path and by where links lead."""
    return {_identity(place) for start in (folder.absolute(), folder.resolve()) for place in (start, *start.parents)}


def _reason(entry: os.DirEntry[str]) -> str | None:
    """Return why an entry of a folder is neither an image nor a folder that may hold some, or None if it is one."""
    if entry.name.startswith(".") or entry.name in _OF_THE_SYSTEM:
        return HIDDEN
    if entry.is_dir():
        return None
    if not entry.name.lower().endswith(SUFFIXES):
        return not_an_image(entry.name)
    if entry.is_file():
        return None
    return _NOT_A_FILE if os.path.exists(entry.path) else _BROKEN


def _reason_of_folder(folder: Path, seen: set[Identity]) -> str | None:
    return _LOOP if _identity(folder) in seen else _made(folder)


def not_an_image(name: str) -> str:
    """Return why a file of this name is not read.

    Example:
        >>> not_an_image("cat/notes.TXT")
        'no image that is read, by its suffix .txt'
    """
    suffix = Path(name).suffix.lower()
    cure = {"HEIF": ": pip install pillow-heif", "AVIF": ": pip install -U pillow"}.get(UNREAD.get(suffix, ""), "")
    return f"{NOT_AN_IMAGE} {suffix}{cure}" if suffix else f"{NOT_AN_IMAGE}, which is missing"


def _made(folder: Path) -> str | None:
    """Return why a folder holds no data: it is a run's, or what a command writes."""
    if any(all((folder / name).exists() for name in output) for output in _OUTPUTS):
        return MADE_HERE
    if re.fullmatch(r"version_\d+", folder.name):
        names = os.listdir(folder)
        return MADE_HERE if not names or any(name in _RUN_FILES or "tfevents" in name for name in names) else None
    return _PYTHON if (folder / "pyvenv.cfg").exists() else None


def _identity(folder: Path) -> Identity:
    found = folder.stat()
    return (found.st_dev, found.st_ino) if found.st_ino else (folder.resolve(),)


def identities(images: Sequence[Found]) -> Iterator[Identity | None]:
    """Return what is the same for two paths of one file, and for nothing else; None for a file that has but one path.

    A folder's list says the inodes for nothing, where a million files ask for a million looks; but some file systems
    say nonsense there, so that files which seem to be the same, and all where there are links, are looked at.

    Args:
        images: n files.
    """
    counts = Counter(image.inode for image in images)
    for path, inode in images:
        if counts[inode] == 1 and not counts[0]:
            yield None
        else:
            found = path.stat()
            yield (found.st_dev, found.st_ino, found.st_size) if found.st_ino else None


def tell(root: Path, left_out: Iterable[Without]) -> list[LeftOut]:
    """Return what is left out by reason, its names as seen from ``root``.

    Example:
        >>> tell(Path("pets"), [Without("hidden", "pets/.git/"), Without("hidden", "pets/cat/._1.jpg")])
        [LeftOut(reason='hidden', names=['.git/', 'cat/._1.jpg'])]
    """
    reasons: dict[str, list[str]] = {}
    for reason, path in left_out:
        reasons.setdefault(reason, []).append(path.removeprefix(f"{root}/"))
    return [LeftOut(reason, names) for reason, names in reasons.items()]
