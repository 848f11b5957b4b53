"""Parse the JSON of COCO annotation files and validate each entry."""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.progress import note

_LISTS = ("images", "annotations", "categories")
_EXPECTED = 'a COCO annotation file is a JSON object with the lists "images", "annotations" and "categories"'
_MAX_PIXELS = 2**31  # run lengths have 32 bits
_IDS = range(-(2**63), 2**63)  # 64 bits, as in tensors and the evaluation
_MIB = 2**20
_LARGE = 32 * _MIB  # bytes of a file that takes over a second to read
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60


def brief(value: Any) -> str:
    """Return a short one-line repr of a value, for error messages.

    Example:
        >>> brief(["a", 10**400])
        "['a', 100000000000000000...0000000000000000000]"
    """
    return printable(_BRIEF.repr(value))


def load_coco(path: Path) -> dict[str, list[Any]]:
    """Return the three lists of an annotation file.

    Args:
        path: JSON file in COCO's format.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a COCO annotation file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}: check data.root, or name the file itself")
    if (size := path.stat().st_size) > _LARGE:
        note(f"reading {path}, {size / _MIB:.0f} MiB")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_reject_duplicates)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or "it does not fit into memory"
        raise ValueError(f"{path} cannot be read as JSON ({reason}): {_EXPECTED}") from None
    for key in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path} has no list {key!r}: {_EXPECTED}")
    if not (content["images"] and content["categories"]):
        raise ValueError(f"{path} lists no {'categories' if content['images'] else 'images'}: there is nothing to learn")
    return {key: content[key] for key in _LISTS}


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; reject duplicate keys, of which Python would take the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {brief(twin)} stands twice in the object with the id {brief(result.get('id'))}")
    return result


def is_id(value: Any) -> TypeGuard[int]:
    """Return whether a value is a valid id: a 64-bit integer, not a bool."""
    return type(value) is int and value in _IDS


def unique(path: Path, kind: str, entries: Sequence[Any]) -> Sequence[dict[str, Any]]:
    """Check that every entry has a unique id; return the entries.

    Args:
        path: Annotation file, for the message.
        kind: Kind of entry, for the message.
        entries: One of the file's lists.

    Raises:
        ValueError: If an entry is not an object, or its id is missing or a duplicate.
    """
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        identity = entry.get("id") if isinstance(entry, dict) else None
        if not is_id(identity):
            raise ValueError(f"{path}: {kind} number {number} has no whole number as its id, got {brief(identity)}")
        if identity in seen:
            raise ValueError(f"{path}: there are two of {kind} {identity}")
        seen.add(identity)
    return entries


def read_categories(path: Path, entries: Sequence[Any]) -> dict[int, str]:
    """Return class names by category id, in id order.

    Args:
        path: Annotation file, for the message.
        entries: The file's categories.

    Raises:
        ValueError: If an entry is malformed; the message holds its id.
    """
    names: dict[str, int] = {}
    for entry in unique(path, "category", entries):
        name, where = entry.get("name"), f"{path}: category {entry['id']}"
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where} has no name")
        if _CONTROL.search(name) or not _can_be_encoded(name):
            raise ValueError(f"{where} has the name {brief(name)}, which holds control characters: write it as plain text")
        if name in names:
            raise ValueError(f"{where} has the name of category {names[name]}, {brief(name)}: rename or remove one of them")
        names[name] = entry["id"]
    return {identity: name for name, identity in sorted(names.items(), key=lambda item: item[1])}


def read_images(path: Path, entries: Sequence[Any]) -> dict[int, dict[str, Any]]:
    """Return the images by their ids, each with ``id``, ``file_name``, ``height`` and ``width`` alone.

    Args:
        path: Annotation file, for the message.
        entries: The file's images.

    Raises:
        ValueError: If an entry is malformed; the message holds its id.
    """
    return {entry["id"]: _image(f"{path}: image {entry['id']}", entry) for entry in unique(path, "image", entries)}


def _image(where: str, entry: dict[str, Any]) -> dict[str, Any]:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has no file_name")
    if _CONTROL.search(name) or not _can_be_encoded(name):
        raise ValueError(f"{where} has the file_name {brief(name)}, which names no file: it holds control characters")
    sides = [entry.get(side) for side in ("height", "width")]
    if not (all(type(side) is int and side > 0 for side in sides) and sides[0] * sides[1] <= _MAX_PIXELS):  # type: ignore[operator]
        raise ValueError(f"{where} ({printable(name)}) has no height and width in pixels, got {brief(sides)}")
    return {"id": entry["id"], "file_name": name, "height": sides[0], "width": sides[1]}


def _can_be_encoded(text: str) -> bool:
    try:
        os.fsencode(text)  # JSON can hold halves of characters
        return True
    except UnicodeEncodeError:
        return False
