"""Atomic file writes.

Every file of this package is written here. Links are followed. Anything but a regular file (a FIFO, a device, /dev/stdout) is
written to directly. A regular file is replaced by a complete new one with its mode and, if permitted, its owner; if only the
file is writable, not its folder, it is overwritten in place. A read-only file is never replaced.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from flatten_transformer.utils.picture_style import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image
    from typing_extensions import Self

_IN_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}  # why a writable file cannot be replaced
_KEPT_BYTES = 100  # of a file name, in the name of its draft


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside ``path``, sync it, and only then rename it; make missing folders.

    Args:
        path: Destination; links are followed, streams written to directly.
        content: The whole file.

    Raises:
        OSError: If it cannot be written; its ``filename`` is ``path``.

    Example:
        >>> file = getfixture("tmp_path") / "folder" / "file"
        >>> write_atomically(file, b"whole")
        >>> file.read_bytes()
        b'whole'
    """
    with naming(path):
        place = _resolve(path)
        if place.stream is not None:
            with _closing(place.stream()) as descriptor:
                _write_all(descriptor, content)
            return
        try:
            _replace(place, content)
        except OSError as error:
            if place.old is None or error.errno not in _IN_PLACE:
                raise
            _write_in_place(place.target, content)


def write_png(path: Path, image: Image.Image) -> None:
    """Write an image as a PNG file, atomically; make missing folders.

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


def write_figure(path: Path, figure: Figure, *, tight: bool = False) -> None:
    """Write a figure of matplotlib as a PNG file, atomically; make missing folders.

    Args:
        path: Destination.
        figure: Figure.
        tight: Crop the margins.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, bbox_inches="tight" if tight else None)
    write_atomically(path, content.getvalue())


class GrowingFile:
    """A file written piece by piece, each on disk as soon as it is written.

    Nothing is touched before the first piece. A new file gets the pieces directly. An existing one is left intact while they
    go to a new ``<name>.part`` beside it, which replaces it at the end of a ``with`` block that raises nothing. Either way
    all pieces survive, even if the process is killed.

    Args:
        path: Destination, as in :func:`write_atomically`.

    Attributes:
        place: Where the pieces are.

    Example:
        >>> path = getfixture("tmp_path") / "file"
        >>> with GrowingFile(path) as file:
        ...     file.write(b"one ")
        ...     file.write(b"two")
        >>> path.read_bytes()
        b'one two'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = path
        self._target: Path | None = None  # file that ``place`` will replace
        self._descriptor: int | None = None
        self._size: int | None = None  # bytes of complete pieces, in a regular file

    def write(self, piece: bytes) -> None:
        """Append a piece, or nothing of it if the disk is full.

        Raises:
            OSError: If it cannot be written; its ``filename`` is that of the file.
        """
        with naming(self.place):
            if self._descriptor is None:
                self._descriptor = self._begin()
            try:
                _write_all(self._descriptor, piece)
            except BaseException:
                if self._size is not None:
                    os.ftruncate(self._descriptor, self._size)
                raise
            if self._size is not None:
                self._size += len(piece)

    def _begin(self) -> int:
        place = _resolve(self.path)
        if place.stream is not None:
            return place.stream()
        self._size = 0
        if place.old is None:
            place.target.parent.mkdir(parents=True, exist_ok=True)
            return os.open(place.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self.place, descriptor = _open_part(place)
        except OSError as error:
            if error.errno not in _IN_PLACE:
                raise
            return os.open(place.target, os.O_WRONLY | os.O_TRUNC)
        self._target = place.target
        return descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._descriptor is None:
            return
        with naming(self.place), _closing(self._descriptor):
            if self._size is not None:
                os.fsync(self._descriptor)
        if kind is None and self._target is not None:
            self._take_place(self._target)

    def _take_place(self, target: Path) -> None:
        with naming(self.path):
            try:
                os.replace(self.place, target)
            except OSError as error:
                if error.errno not in _IN_PLACE:
                    raise
                _write_in_place(target, self.place.read_bytes())
                self.place.unlink()
        self.place = self.path


def draft_of(path: Path) -> Path:
    """Return a unique hidden name beside ``path`` for an unfinished file or folder.

    Example:
        >>> draft_of(Path("runs/a.json")).name[:8]
        '.a.json.'
    """
    return path.with_name(f".{_shortened(path.name, 14)}.{secrets.token_hex(4)}.tmp")


def free_part(path: Path) -> Path:
    """Return the first free name beside ``path``: ``<name>.part``, ``<name>.2.part`` and so on.

    Example:
        >>> free_part(getfixture("tmp_path") / "a.json").name
        'a.json.part'
    """
    return next(part for part in _parts(path) if not os.path.lexists(part))


def parts_of(path: Path) -> list[Path]:
    """Return what unfinished starts have left beside ``path``: ``<name>.part``, ``<name>.2.part`` and so on.

    Example:
        >>> path = getfixture("tmp_path") / "a.json"
        >>> free_part(path).touch()
        >>> [part.name for part in parts_of(path)]
        ['a.json.part']
    """
    return list(itertools.takewhile(os.path.lexists, _parts(path)))


def _parts(path: Path) -> Iterator[Path]:
    name = _shortened(path.name, 9)
    return (path.with_name(f"{name}{'' if number == 1 else f'.{number}'}.part") for number in itertools.count(1))


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise an error, before any work, if an output cannot be written or is also an input.

    Args:
        outputs: Files to write.
        inputs: Files to leave alone, under any name: other spellings, symbolic and hard links count.

    Raises:
        ValueError: If an output is an input, or a folder.
        OSError: If an output or its folder cannot be written.

    Example:
        >>> file = getfixture("tmp_path") / "cat.png"
        >>> file.touch()
        >>> check_outputs([file.parent / "classes.csv"], [file])
        >>> check_outputs([file], [file])
        Traceback (most recent call last):
        ValueError: ...cat.png is read by this command, which would write over it: choose another name for what is written
    """
    outputs = list(outputs)
    if lost := same_file(outputs, inputs):
        raise ValueError(f"{lost} is read by this command, which would write over it: choose another name for what is written")
    for path in outputs:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: remove it, or choose another name for the file that is written")
        with naming(path):
            _resolve(path)
    for folder in {path.parent for path in outputs}:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists() or parent == parent.parent)
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))


def is_stream(path: Path) -> bool:
    """Return whether a path is a stream: a FIFO, a terminal, a device, /dev/stdout.

    Example:
        >>> is_stream(Path("/dev/null")), is_stream(getfixture("tmp_path") / "new.csv")
        (True, False)
    """
    return _own_descriptor(path) is not None or (path.exists() and not path.is_file())


def same_file(outputs: Iterable[Path], inputs: Iterable[Path]) -> Path | None:
    """Return the first regular file among ``outputs`` that is also one of ``inputs``, under any name.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "a").touch()
        >>> (folder / "b").hardlink_to(folder / "a")
        >>> same_file([folder / "c", folder / "b"], [folder / "a"]).name
        'b'
    """
    read = {_identity(path) for path in inputs} - {None}
    return next((path for path in outputs if _identity(path) in read), None) if read else None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # missing, or an invalid name
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to an error of the operating system, such as "No space left on device".

    Example:
        >>> with naming(Path("big.bin")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'big.bin'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.strerror is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class _Place(NamedTuple):
    """Where a path leads."""

    target: Path  # links resolved
    old: os.stat_result | None  # of an existing regular file
    stream: Callable[[], int] | None  # opens anything but a regular file; returns its descriptor


def _resolve(path: Path) -> _Place:
    """Resolve a path; raise the system's error if an existing file is not writable."""
    target = Path(os.path.realpath(path))
    own = _own_descriptor(path)
    if own is not None:  # even if it is a file: to append to it
        return _Place(target, None, lambda: os.dup(own))
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return _Place(target, None, None)
    if stat.S_ISREG(old.st_mode):
        os.close(os.open(target, os.O_WRONLY))
        return _Place(target, old, None)
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return _Place(target, None, lambda: os.open(path, os.O_WRONLY))


def _own_descriptor(path: Path) -> int | None:
    """Return the open descriptor of this process that a path stands for, as /dev/stdout does for 1."""
    mine = f"/proc/{os.getpid()}/fd"
    for _ in range(40):
        if path.name.isdigit() and os.path.realpath(path.parent) == mine:
            return int(path.name)
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return None


def _replace(place: _Place, content: bytes) -> None:
    place.target.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(place.target)
    try:
        with _closing(_create(draft, place.old)) as descriptor:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        os.replace(draft, place.target)
    finally:
        draft.unlink(missing_ok=True)


def _shortened(name: str, bytes_added: int) -> str:
    """Cut a long name, so that with the bytes added it is no longer than before: file systems limit names."""
    raw = os.fsencode(name)
    return name if len(raw) <= _KEPT_BYTES else raw[: max(_KEPT_BYTES, len(raw) - bytes_added)].decode("utf-8", "ignore")


def _open_part(place: _Place) -> tuple[Path, int]:
    while True:
        part = free_part(place.target)
        with suppress(FileExistsError):  # another process was faster
            return part, _create(part, place.old)


def _create(path: Path, like: os.stat_result | None) -> int:
    """Open a new file with the mode and owner of another one, if given, else by the umask."""
    mode = 0o666 if like is None else stat.S_IMODE(like.st_mode) & 0o777
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    if like is not None and hasattr(os, "fchown"):
        for owner in ((like.st_uid, -1), (-1, like.st_gid)):
            with suppress(OSError):
                os.fchown(descriptor, *owner)
        with suppress(OSError):  # file systems without modes
            os.fchmod(descriptor, mode)
    return descriptor


def _write_in_place(target: Path, content: bytes) -> None:
    with _closing(os.open(target, os.O_WRONLY | os.O_TRUNC)) as descriptor:
        _write_all(descriptor, content)
        os.fsync(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
