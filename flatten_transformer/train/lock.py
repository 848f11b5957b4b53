"""Folders that one training writes into, and no other meanwhile."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from flatten_transformer.utils.printable import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = ".training.lock"
_DRAFT = re.compile(r"\..+\.(ckpt|safetensors|png)\.[0-9a-f]{8}\.tmp")  # what write_atomically leaves behind a kill
_HELD = {errno.EACCES, errno.EAGAIN}
_own: set[Path] = set()  # the system's locks do not keep a process from its own


@contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Keep other trainings out of folders, and remove what a killed one left half written there.

    The lock is the system's, on a file in the folder that says whose it is, so that it ends with its process. Where the
    file system knows no locks, as some network file systems, what the file says counts.

    Args:
        folders: Made where they are missing.

    Raises:
        ValueError: If another training writes into one of them.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with locked([folder]):
        ...     with locked([folder]):
        ...         pass
        Traceback (most recent call last):
        ValueError: ... is being written to by another training (process ...): wait for its end, or give another folder...
    """
    with ExitStack() as stack:
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            stack.enter_context(_locked(folder))
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME
    with _claimed(path) as file:
        _own.add(path)
        try:
            file.truncate(0)
            file.write(f"{os.getpid()} {socket.gethostname()}\n")
            file.flush()
            for draft in drafts(folder):
                draft.unlink(missing_ok=True)
            yield
        finally:
            _own.discard(path)
            path.unlink(missing_ok=True)


def _claimed(path: Path) -> TextIOWrapper:
    """Return the open file of a lock that is this process's."""
    while True:
        if path in _own:
            raise _refusal(path, f"{os.getpid()} {socket.gethostname()}")
        file = path.open("a+", encoding="utf-8")
        try:
            _take(file)
        except BaseException:
            file.close()
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # the one who had it has removed it meanwhile


def _take(file: TextIOWrapper) -> None:
    file.seek(0)
    owner = file.read(200)
    try:
        if fcntl is None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD or _may_be_alive(owner):
            raise _refusal(Path(file.name), owner) from None


def _may_be_alive(owner: str) -> bool:
    """Return whether the owner of a lock may still be there; of other machines nobody knows."""
    process, _, host = owner.strip().partition(" ")
    if not process.isdigit():
        return False
    if host != socket.gethostname() or os.name == "nt":  # there, os.kill ends processes
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    return True


def _refusal(path: Path, owner: str) -> ValueError:
    process, _, host = owner.strip().partition(" ")
    who = f" (process {process} on {host})" if process else ""
    return ValueError(
        f"{printable(str(path.parent))} is being written to by another training{printable(who)}: wait for its end, or give "
        f"another folder; if no such process runs, delete {printable(str(path))}"
    )


def drafts(folder: Path) -> list[Path]:
    """Return the files that a killed training left half written in a folder.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> for name in (".last.ckpt.0123abcd.tmp", "last.ckpt", "notes.tmp"):
        ...     (folder / name).touch()
        >>> [path.name for path in drafts(folder)]
        ['.last.ckpt.0123abcd.tmp']
    """
    return [path for path in folder.iterdir() if _DRAFT.fullmatch(path.name)] if folder.is_dir() else []


def remove_drafts(folders: Iterable[Path]) -> None:
    """Remove what killed trainings left half written in folders, except where one is writing now."""
    for folder in folders:
        if drafts(folder):
            with suppress(ValueError, OSError), locked([folder]):
                pass


def check_idle(folder: Path) -> None:
    """Raise ValueError if a training is writing into a folder now."""
    if (folder / _NAME).is_file():
        with locked([folder]):
            pass
