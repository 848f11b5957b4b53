"""Exclusive locks on the folders of a training run."""

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
_DRAFT = re.compile(r"\..+\.(ckpt|safetensors|png)\.[0-9a-f]{8}\.tmp")  # left by write_atomically when killed
_HELD = {errno.EACCES, errno.EAGAIN}
_own: set[Path] = set()  # the system's locks do not exclude their own process


@contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Lock folders against other training runs, and remove unfinished files of killed ones.

    The lock is the system's, on a file in the folder that names its owner, so it ends with the process. On file systems
    without locks, such as some network ones, the named owner counts.

    Args:
        folders: Created if missing.

    Raises:
        ValueError: If another training run holds one of them.

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
    """Return the open lock file, held by this process."""
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
        file.close()  # its owner has removed it meanwhile


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
    """Return whether the owner of a lock may be alive; unknown, so True, on other machines."""
    process, _, host = owner.strip().partition(" ")
    if not process.isdigit():
        return False
    if host != socket.gethostname() or os.name == "nt":  # where os.kill ends processes
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # alive, and another user's
    return True


def _refusal(path: Path, owner: str) -> ValueError:
    process, _, host = owner.strip().partition(" ")
    who = f" (process {process} on {host})" if process else ""
    return ValueError(
        f"{printable(str(path.parent))} is being written to by another training{printable(who)}: wait for its end, or give "
        f"another folder; if no such process runs, delete {printable(str(path))}"
    )


def drafts(folder: Path) -> list[Path]:
    """Return the unfinished files of killed training runs in a folder.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> for name in (".last.ckpt.0123abcd.tmp", "last.ckpt", "notes.tmp"):
        ...     (folder / name).touch()
        >>> [path.name for path in drafts(folder)]
        ['.last.ckpt.0123abcd.tmp']
    """
    return [path for path in folder.iterdir() if _DRAFT.fullmatch(path.name)] if folder.is_dir() else []


def remove_drafts(folders: Iterable[Path]) -> None:
    """Remove unfinished files of killed training runs from folders that are not locked."""
    for folder in folders:
        if drafts(folder):
            with suppress(ValueError, OSError), locked([folder]):
                pass


def is_held(folder: Path) -> bool:
    """Return whether a training run holds a folder.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with locked([folder]):
        ...     is_held(folder)
        True
        >>> is_held(folder)
        False
    """
    try:
        check_idle(folder)
    except ValueError:
        return True
    return False


def check_idle(folder: Path) -> None:
    """Raise ValueError if a training run holds a folder."""
    if (folder / _NAME).is_file():
        with locked([folder]):
            pass
