"""Find image files in folders, each once, with a reason for every file left out."""

# n images.

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flatten_transformer.data.image_files import SUFFIXES, UNSUPPORTED
from flatten_transformer.data.source import LeftOut
from flatten_transformer.utils.progress import track

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


class ImageFile(NamedTuple):
    """An image file."""

    path: Path
    inode: int  # from the directory entry; 0 if reached through a link


class Excluded(NamedTuple):
    """A file or folder left out; folder paths end with a slash."""

    reason: str
    path: str


class Walk(NamedTuple):
    """Recursive contents of a folder."""

    images: list[ImageFile]  # sorted by path
    left_out: list[Excluded]


class Listing(NamedTuple):
    """Direct contents of a folder."""

    folders: list[Path]
    images: list[ImageFile]
    left_out: list[Excluded]


def walk(folder: Path) -> Walk:
    """Find images recursively; links are followed, but no folder is entered twice.

    Hidden files and folders, files without an image suffix, special files, and outputs of this library are left out.

    Args:
        folder: Folder to search.

    Raises:
        OSError: If a folder cannot be read.
    """
    result, seen = Walk([], []), _ancestors(folder)

    def enter(parent: Path, linked: bool) -> list[tuple[Path, bool]]:
        listing = list_folder(parent, seen, linked)
        result.images.extend(listing.images)
        result.left_out.extend(listing.left_out)
        return [(path, linked or path.is_symlink()) for path in listing.folders]

    with track(enter(folder, folder.is_symlink()), lambda place: f"all files below {place[0]}", quick=True) as places:
        for place in places:
            pending = [place]
            while pending:
                pending += reversed(enter(*pending.pop()))
    result.images.sort()
    return result


def list_folder(folder: Path, seen: set[Identity] | None = None, linked: bool = False) -> Listing:
    """List the folders and images in a folder, and the entries left out.

    Args:
        folder: Folder to list.
        seen: Folders already visited, extended by those found; by default the ancestors of ``folder``, not extended.
        linked: The folder was reached through a link.

    Raises:
        OSError: If the folder cannot be read.
    """
    listing, visited = Listing([], [], []), _ancestors(folder) if seen is None else seen
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    with track(listed, lambda entry: f"files in {folder}", quick=True) as entries_at_hand:
        for entry in entries_at_hand:
            path, is_folder = folder / entry.name, entry.is_dir()
            reason = _reason(entry) or (is_folder and _reason_of_folder(path, visited))
            if reason:
                listing.left_out.append(Excluded(reason, f"{path}{'/' * is_folder}"))
            elif is_folder:
                listing.folders.append(path)
                if seen is not None:
                    seen.add(_identity(path))
            else:
                listing.images.append(ImageFile(path, 0 if linked or entry.is_symlink() else entry.inode()))
    return listing


def _ancestors(folder: Path) -> set[Identity]:
    """Return the identities of a folder and its ancestors, with links resolved and not."""
    return {_identity(place) for start in (folder.absolute(), folder.resolve()) for place in (start, *start.parents)}


def _reason(entry: os.DirEntry[str]) -> str | None:
    """Return why an entry is left out; None for an image or a folder that may hold some."""
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
    return _LOOP if _identity(folder) in seen else _made_here(folder)


def not_an_image(name: str) -> str:
    """Return why a file of this name is not read.

    Example:
        >>> not_an_image("cat/notes.TXT")
        'no image that is read, by its suffix .txt'
    """
    suffix = Path(name).suffix.lower()
    cure = {"HEIF": ": pip install pillow-heif", "AVIF": ": pip install -U pillow"}.get(UNSUPPORTED.get(suffix, ""), "")
    return f"{NOT_AN_IMAGE} {suffix}{cure}" if suffix else f"{NOT_AN_IMAGE}, which is missing"


def _made_here(folder: Path) -> str | None:
    """Return why a folder holds no data: outputs of a run or command, or a Python environment."""
    if any(all((folder / name).exists() for name in output) for output in _OUTPUTS):
        return MADE_HERE
    if re.fullmatch(r"version_\d+", folder.name):
        names = os.listdir(folder)
        return MADE_HERE if not names or any(name in _RUN_FILES or "tfevents" in name for name in names) else None
    return _PYTHON if (folder / "pyvenv.cfg").exists() else None


def _identity(folder: Path) -> Identity:
    stat = folder.stat()
    return (stat.st_dev, stat.st_ino) if stat.st_ino else (folder.resolve(),)


def identities(images: Sequence[ImageFile]) -> Iterator[Identity | None]:
    """Yield an identity shared exactly by the paths of one file; None for a file with a single path.

    Directory listings give inodes without a ``stat`` per file, but some file systems report wrong ones. So files that appear
    to be the same are checked by ``stat``, and all files if there are links.

    Args:
        images: n files.
    """
    counts = Counter(image.inode for image in images)
    for path, inode in images:
        if counts[inode] == 1 and not counts[0]:
            yield None
        else:
            stat = path.stat()
            yield (stat.st_dev, stat.st_ino, stat.st_size) if stat.st_ino else None


def group_by_reason(root: Path, left_out: Iterable[Excluded]) -> list[LeftOut]:
    """Group left-out paths by reason, relative to ``root``.

    Example:
        >>> group_by_reason(Path("pets"), [Excluded("hidden", "pets/.git/"), Excluded("hidden", "pets/cat/._1.jpg")])
        [LeftOut(reason='hidden', names=['.git/', 'cat/._1.jpg'])]
    """
    reasons: dict[str, list[str]] = {}
    for reason, path in left_out:
        reasons.setdefault(reason, []).append(path.removeprefix(f"{root}/"))
    return [LeftOut(reason, names) for reason, names in reasons.items()]
