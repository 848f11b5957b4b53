"""Cache of compiled kernels: a folder that nobody else can write to, file names that hold digests."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_CURE = "take that right from them (chmod go-w), or let XDG_CACHE_HOME and TMPDIR name folders of your own"


def cache_folder() -> Path:
    """Return the folder of compiled kernels in the user's cache, made if it is missing.

    Raises:
        OSError: If it cannot be made, or somebody else can write to it.
        RuntimeError: If this user has no home.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (named if named.is_absolute() else Path.home() / ".cache") / "flatten_transformer"  # as the XDG specification has it
    _make(folder)
    return ours_alone(folder)


def _make(folder: Path) -> None:
    """Make a folder and its missing parents, private to this user whatever the umask."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(0o700, exist_ok=True)


def ours_alone(folder: Path) -> Path:
    """Return the resolved path of a folder in which only this user and root can create, change or replace files.

    As ``ssh`` does for its keys, it checks the parent folders too, up to this user's home; others may write to sticky
    ones, such as ``/tmp``.

    Raises:
        PermissionError: If others can write there; the message says where and what to do.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> ours_alone(folder).samefile(folder)
        True
        >>> folder.chmod(0o777)
        >>> ours_alone(folder)
        Traceback (most recent call last):
        PermissionError: others can write to ...: take that right from them (chmod go-w), or let XDG_CACHE_HOME and TMPDIR ...
    """
    folder = folder.resolve(strict=True)
    if os.name != "posix":
        return folder
    home = _home()
    for part in (folder, *folder.parents):
        status = part.stat()
        sticky = part != folder and status.st_mode & stat.S_ISVTX
        if reason := _why_foreign(part, status) or (None if sticky else _why_open(part, status)):
            raise PermissionError(f"{reason}: {_CURE}")
        if part == home:
            break
    return folder


def _home() -> Path | None:
    """Return the home that the system knows, whatever HOME says; who owns the folders above it owns the machine."""
    import pwd  # not on every system

    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir).resolve()
    except KeyError:
        return None


def _why_foreign(path: Path, status: os.stat_result) -> str | None:
    """Return why a file or folder is not this user's or root's, or None."""
    if status.st_uid in (0, os.geteuid()):
        return None
    return f"{path} belongs to another user (number {status.st_uid})"


def _why_open(path: Path, status: os.stat_result) -> str | None:
    """Return why others may write to a file or folder, or None."""
    if not status.st_mode & stat.S_IWOTH and (not status.st_mode & stat.S_IWGRP or _is_private_group(status)):
        return None
    return f"others can write to {path}"


def _is_private_group(status: os.stat_result) -> bool:
    """Return whether a group is its owner's own, as most Linux distributions give every user one."""
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return owner.pw_gid == status.st_gid and group.gr_name == owner.pw_name and set(group.gr_mem) <= {owner.pw_name}


def kept(folder: Path, key: str) -> Iterator[Path]:
    """Yield the intact libraries of a key in a folder of :func:`cache_folder`; damaged and foreign files are skipped.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "draft").write_bytes(b"code")
        >>> library = keep(folder / "draft", folder, "key")
        >>> list(kept(folder, "key")) == [library]
        True
        >>> _ = library.write_bytes(b"co")
        >>> list(kept(folder, "key"))
        []
    """
    for library in sorted(folder.glob(f"attention-{key}-*.so")):
        if _is_whole(library):
            yield library


def _is_whole(library: Path) -> bool:
    try:
        status = library.lstat()
        ours = os.name != "posix" or not (_why_foreign(library, status) or _why_open(library, status))
        return stat.S_ISREG(status.st_mode) and ours and library.stem.rpartition("-")[2] == _digest(library)
    except OSError:
        return False


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def keep(draft: Path, folder: Path, key: str) -> Path:
    """Copy a library into a folder of :func:`cache_folder`, atomically, and return the copy.

    Raises:
        OSError: If it cannot be written.
    """
    library = folder / f"attention-{key}-{_digest(draft)}.so"
    number, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
    copy = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(draft.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        copy.chmod(0o644)  # whatever the umask
        copy.replace(library)
    finally:
        copy.unlink(missing_ok=True)
    return library
