"""Digests in files of ``torch.save``, which are zip files, to detect damage."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from pathlib import Path

_BEGIN = b"PK\x03\x04"
_END = b"PK\x05\x06"  # starts the last record of a zip file: 22 bytes, the last two the length of the comment that follows
_RECORD = 22
_MARK = b"flatten_transformer sha256 "
_COMMENT = len(_MARK) + 2 * hashlib.sha256().digest_size


def seal(content: io.BytesIO) -> None:
    """Append the digest of a zip file as its comment, which zip readers ignore.

    Args:
        content: A zip file without a comment, such as ``torch.save`` writes.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> content = io.BytesIO()
        >>> torch.save({"weight": torch.zeros(1)}, content)
        >>> seal(content)
        >>> torch.load(content, weights_only=True)
        {'weight': tensor([0.])}
    """
    with content.getbuffer() as view:
        if not _ends_plainly(bytes(view[-_RECORD:])):
            raise ValueError("only a zip file without a comment can take a digest")
        view[-2:] = struct.pack("<H", _COMMENT)
        comment = _MARK + hashlib.sha256(view).hexdigest().encode()
    content.seek(0, io.SEEK_END)
    content.write(comment)
    content.seek(0)


def damage(path: Path) -> str | None:
    """Return the damage of a file of ``torch.save``, in a few words, or None.

    A sealed file is checked against its digest, any other zip file against the checksums of its entries. Other formats
    are left to their readers.

    Args:
        path: File path.

    Raises:
        OSError: If it cannot be read.

    Example:
        >>> path = getfixture("tmp_path") / "last.ckpt"
        >>> content = io.BytesIO()
        >>> torch.save({"weight": torch.zeros(100)}, content)
        >>> seal(content)
        >>> path.write_bytes(content.getvalue()) > 400, damage(path)
        (True, None)
        >>> path.write_bytes(content.getvalue()[:400]), damage(path)
        (400, 'cut short or changed')
    """
    with path.open("rb") as file:
        begin = file.read(len(_BEGIN))
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _COMMENT))
        comment = file.read()
        if comment.startswith(_MARK):
            return None if comment == _MARK + _digest(file, size - _COMMENT) else "its digest does not fit"
        if begin != _BEGIN:
            return None
        if _ends_plainly(comment[-_RECORD:]):
            return None if _checksums_fit(file) else "its checksums do not fit"
    return "cut short or changed"


def check_whole(path: Path) -> None:
    """Raise ValueError if a file of ``torch.save`` is damaged.

    Args:
        path: File path; other formats and missing files are not checked.
    """
    reason = damage(path) if path.is_file() else None
    if reason is not None:
        raise ValueError(f"{path} is damaged ({reason}): copy it anew, or take another")


def _ends_plainly(record: bytes) -> bool:
    return len(record) == _RECORD and record.startswith(_END) and record.endswith(b"\0\0")


def _digest(file: io.BufferedReader, size: int) -> bytes:
    """Return the digest of the first ``size`` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(min(2**20, size - file.tell())):
        digest.update(piece)
    return digest.hexdigest().encode()


def _checksums_fit(file: io.BufferedReader) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises nearly everything on damaged headers
        return False
