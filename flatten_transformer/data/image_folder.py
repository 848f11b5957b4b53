"""A folder of images, one folder a class, as most people keep their own data."""

# n images.

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.source import Source, Splits

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_VAL = ("val", "valid", "validation")


class ImageFiles(Source):
    """Image files and their classes.

    Args:
        files: n paths.
        labels: The class of each, n numbers.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int]) -> None:
        self.files = files
        self.labels = labels

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.files[index]), self.labels[index]

    def name(self, index: int) -> str:
        """Return the path of the file."""
        return str(self.files[index])


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and the folders in it, sorted by path; hidden ones are left out.

    Args:
        folder: Where to look; links are followed.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> for name in ("b.PNG", "a.jpg", "._a.jpg", "notes.txt"):
        ...     (folder / name).touch()
        >>> [path.name for path in find_images(folder)]
        ['a.jpg', 'b.PNG']
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def open_folder(root: Path) -> Splits:
    """Find classes and images in ``root/train/<class>/``, ``root/val/<class>/`` and ``root/test/<class>/``.

    Without a folder ``train``, the classes are the folders in ``root`` itself. A folder ``train``, ``val``
    (or ``valid``, ``validation``) or ``test`` that holds images but no folders is a class like any other.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has fewer than two classes, a class has no image to learn from, or a class is in ``val`` or
            ``test`` alone.

    Example:
        >>> root = getfixture("tmp_path")
        >>> for name in ("dog", "cat"):
        ...     (root / name).mkdir()
        ...     (root / name / "1.jpg").touch()
        >>> folder = open_folder(root)
        >>> folder.class_names, folder.train.labels, folder.val
        (['cat', 'dog'], [0, 1], None)
    """
    if not root.exists():
        raise FileNotFoundError(f"no folder {root}: check data.root")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: data.root must be a folder with one folder of images a class")
    splits = {path.name: path for path in _folders(root) if path.name in ("train", *_VAL, "test") and _folders(path)}
    val = next((splits[name] for name in _VAL if name in splits), None)
    if val is not None and "train" not in splits:
        raise ValueError(
            f"{root} has class folders in {val.name} but none in train: put the images to learn from into {root}/train"
        )
    train = splits.get("train", root)
    class_names = _class_names(train, set(splits))
    images = _images(train, class_names)
    for label, name in enumerate(class_names):
        if label not in images.labels:
            raise ValueError(f"class folder {train / name} holds no image ({', '.join(SUFFIXES)}): add some, or remove it")
    judged = [None if path is None else _judged(path, class_names, train) for path in (val, splits.get("test"))]
    return Splits(class_names, images, val=judged[0], test=judged[1])


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(folder: Path, splits: set[str]) -> list[str]:
    names = [path.name for path in _folders(folder) if path.name not in splits]
    layout = f"put the images of each class into a folder of its name, such as {folder}/cat/1.jpg"
    if not names:
        raise ValueError(f"{folder} {'has no class folders' if any(folder.iterdir()) else 'is empty'}: {layout}")
    if len(names) == 1:
        raise ValueError(f"{folder} has one class, {names[0]!r}, but it takes two to tell apart: {layout}")
    return names


def _images(folder: Path, class_names: Sequence[str]) -> ImageFiles:
    found = [(path, label) for label, name in enumerate(class_names) for path in find_images(folder / name)]
    return ImageFiles([path for path, _ in found], [label for _, label in found])


def _judged(folder: Path, class_names: Sequence[str], train: Path) -> ImageFiles:
    """Return the images of ``folder``, whose classes must be among those of ``train``, though it may lack some."""
    unknown = [path.name for path in _folders(folder) if path.name not in class_names]
    if unknown:
        raise ValueError(f"{folder} has the class {unknown[0]!r}, which {train} lacks: rename it, or add it to {train}")
    images = _images(folder, class_names)
    if not images.labels:
        raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)}): add some, or remove it")
    return images
