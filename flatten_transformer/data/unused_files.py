"""List the files of a data set that no split uses."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from flatten_transformer.data.image_folder import SUFFIXES
from flatten_transformer.data.source import LeftOut


def unused_files(images: Sequence[Path], masks: Sequence[Path], used: Collection[Path]) -> Sequence[LeftOut]:
    """Return images and masks in no split, and files that are neither; hidden files are ignored.

    Args:
        images: Folders of the images of all splits.
        masks: Folders of the masks of all splits, which may lie among the images.
        used: Files used by the splits.

    Example:
        >>> root = getfixture("tmp_path")
        >>> for name in ("images/a.jpg", "images/b.heic", "masks/a.png"):
        ...     (root / name).parent.mkdir(exist_ok=True)
        ...     (root / name).touch()
        >>> [(reason, len(names)) for reason, names in unused_files([root / "images"], [root / "masks"], [])]
        [('images in no split', 1), ('masks of no image', 1), ('no images that can be read', 1)]
    """
    unused: dict[str, list[str]] = {"images in no split": [], "masks of no image": [], "no images that can be read": []}
    seen = set(used)
    apart = [folder for folder in masks if folder not in images]
    for folders, reason in ((apart, "masks of no image"), (images, "images in no split")):
        for path in sorted({path for folder in folders for path in _files(folder)} - seen):
            seen.add(path)
            is_image = path.name.lower().endswith(SUFFIXES)
            unused[reason if is_image else "no images that can be read"].append(str(path))
    return [LeftOut(reason, names) for reason, names in unused.items() if names]


def _files(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()  # links may form a cycle
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in names if not name.startswith("."))
