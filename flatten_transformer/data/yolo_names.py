"""Class names and splits of a data set in YOLO's format: its YAML file, or a list of classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flatten_transformer.data.class_list import MAX_CLASSES, read_class_names, read_text
from flatten_transformer.data.coco_json import brief, read_categories
from flatten_transformer.data.pairing import IMAGE_FOLDERS
from flatten_transformer.data.safe_paths import lies_under
from flatten_transformer.data.source import Split

_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LISTS = ("classes.txt", "obj.names", "labels/classes.txt", "train/labels/classes.txt", "train/classes.txt")
_MAX_BYTES = 2**20  # of a YAML file


class ClassList(NamedTuple):
    """The class names of a data set, number 0 first, and the places of its splits, if it says them."""

    path: Path
    names: Sequence[str]
    places: Mapping[Split, Sequence[Path]] = {}  # folders, or text files that list images


def find_classes(root: Path) -> Path | None:
    """Return the file of the class names in a folder: a YAML file with ``names``, or a list of classes; None without any.

    Raises:
        ValueError: If several YAML files with ``names`` could be it.
    """
    known = [root / name for name in (*_YAML, *_LISTS) if (root / name).is_file()]
    if known:
        return known[0]
    others = [path for pattern in ("*.yaml", "*.yml") for path in sorted(root.glob(pattern)) if _has_names(path)]
    if len(others) > 1:
        raise ValueError(f"{others[0]} and {others[1].name} both name classes: call the right one data.yaml")
    return others[0] if others else None


def _has_names(path: Path) -> bool:
    try:
        return path.is_file() and isinstance(_load(path), dict) and "names" in _load(path)
    except ValueError:
        return False


def read_classes(root: Path, file: Path | None = None) -> ClassList:
    r"""Return the class names of a data set, and where its YAML file says that the splits are.

    Args:
        root: Data folder.
        file: The file of the names; None to find it.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is malformed.

    Example:
        >>> root = getfixture("tmp_path")
        >>> _ = (root / "data.yaml").write_text("nc: 2\nnames: {0: cat, 1: dog}\ntrain: ../train/images\n")
        >>> read_classes(root).names
        ['cat', 'dog']
    """
    path = file or find_classes(root)
    if path is None:
        wanted = "data.yaml with names:, or classes.txt with a name a line, that of number 0 first"
        raise FileNotFoundError(f"{root} does not name the classes of its labels: add {wanted}")
    if path.suffix not in (".yaml", ".yml"):
        return ClassList(path, read_class_names(path, least=1))
    content = _load(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings by name: write names: and the classes")
    names = _names(path, content.get("names"))
    if isinstance(content.get("nc"), str) and content["nc"] != str(len(names)):
        raise ValueError(f"{path} says nc: {brief(content['nc'])}, but names {len(names)} classes: correct one of them")
    keys: tuple[tuple[Split, str], ...] = (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test"))
    places = {split: found for split, key in keys if (found := list(_places(path, root, content, key)))}
    return ClassList(path, names, places)


def _load(path: Path) -> Any:
    """Return a YAML file with all its values as text: a class may be called yes, or 1."""
    import yaml  # type: ignore[import-untyped]  # ships no annotations

    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES:,} bytes, which is no description of a data set")
    try:
        return yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as YAML ({brief(reason)})") from None


def _names(path: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        if set(names) != set(numbers):
            raise ValueError(f"{path} has names for {brief(sorted(names))}: number the classes from 0, without a hole")
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"{path} has no list of names, from 1 to {MAX_CLASSES}, got {brief(names)}: write names: [cat, dog]")
    return list(read_categories(path, [{"id": number, "name": name} for number, name in enumerate(names)]).values())


def _places(path: Path, root: Path, content: Mapping[str, Any], key: str) -> Iterator[Path]:
    """Yield what an entry of a YAML file names within ``root``, by its ``path`` or without; other places are not entered."""
    entries = content.get(key)
    base = content.get("path")
    bases = [root / base if isinstance(base, str) else root, path.parent, root]
    for entry in [entries] if isinstance(entries, str) else entries if isinstance(entries, list) else []:
        if not isinstance(entry, str) or not entry or "\0" in entry:
            raise ValueError(f"{path} has {brief(entry)} under {key}: name a folder of images, as seen from {root}")
        plain = entry
        while plain.startswith(("../", "./")):  # Roboflow writes ../train/images
            plain = plain.partition("/")[2]
        tried = [folder / name for name in (entry, plain) for folder in bases]
        found = next((place for place in tried if _usable(place, root)), None)
        if found is not None:
            yield root / os.path.relpath(found, root)


def _usable(place: Path, root: Path) -> bool:
    if place != root and not lies_under(place, root):
        return False
    return place.is_dir() or (place.suffix == ".txt" and place.is_file())


def listed_images(file: Path, root: Path) -> list[Path]:
    """Return the images that a text file lists, a path a line, as seen from its folder or ``root``.

    Raises:
        ValueError: If an image is missing or lies elsewhere; the message names the line.
    """
    images = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        name = line.strip()
        if not name:
            continue
        found = next(
            (place for place in _spellings(name, file.parent, root) if lies_under(place, root) and place.is_file()), None
        )
        if found is None:
            raise ValueError(f"{file}, line {number}: there is no image {brief(name)} in {root}: name it as seen from there")
        images.append(root / os.path.relpath(found, root))
    return images


def _spellings(name: str, folder: Path, root: Path) -> Iterator[Path]:
    if "\0" in name:
        return
    parts = Path(name).parts
    for base in (folder, root):
        yield base / name
    for position, part in enumerate(parts):  # a path of another machine
        if part in IMAGE_FOLDERS:
            yield root.joinpath(*parts[position:])
