"""Find the images of each split of a data set, and the file of labels that belongs to an image."""

# n images of a split.

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from flatten_transformer.data.image_folder import find_images
from flatten_transformer.data.source import Split
from flatten_transformer.data.split_names import split_of
from flatten_transformer.utils.progress import track

IMAGE_FOLDERS = ("images", "Images", "JPEGImages", "image", "imgs")


def split_folders(root: Path, besides: Collection[str] = ()) -> dict[Split, Path]:
    """Return the folders of the splits: ``root/train/``, or ``root/images/train/``, and so on; the whole is train without any.

    Common variants of the names, such as ``valid`` and ``Training``, are recognised.

    Args:
        root: Data folder.
        besides: Names of folders in ``root`` that hold labels and no images.

    Raises:
        ValueError: If two folders are one split, or there are others than train and no train.

    Example:
        >>> root = getfixture("tmp_path")
        >>> for name in ("images/train", "images/valid", "labels/train"):
        ...     (root / name).mkdir(parents=True)
        >>> {split: str(folder.relative_to(root)) for split, folder in split_folders(root).items()}
        {'train': 'images/train', 'val': 'images/valid'}
    """
    inside = [root / name for name in IMAGE_FOLDERS if _has_folder(root, name)]
    for parent in (root, *inside[:1]):
        folders: dict[Split, Path] = {}
        for folder in sorted(path for path in parent.iterdir() if path.is_dir() and path.name not in besides):
            split = split_of(folder.name)
            if split in folders:
                raise ValueError(f"{folders[split]} and {folder} are both the split {split}: merge them, or move one elsewhere")
            if split is not None:
                folders[split] = folder
        if folders and "train" not in folders:
            name = next(iter(folders.values()))
            raise ValueError(f"{parent} has a folder {name.name} but none to learn from: call that one train")
        if folders:
            return folders
    return {"train": inside[0] if inside else root}


def _has_folder(root: Path, name: str) -> bool:
    """Return whether there is a folder of exactly this name; file systems that ignore case say so of others."""
    return (root / name).is_dir() and name in os.listdir(root)


def images_of(folder: Path, labels: Collection[str]) -> list[Path]:
    """Return the images of a split: those in its folder of images, if it has one, else all but those in folders of labels.

    Args:
        folder: Folder of a split, from :func:`split_folders`.
        labels: Names of the folders of labels.
    """
    within = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), folder)
    return [path for path in find_images(within) if not set(path.relative_to(within).parts[:-1]) & set(labels)]


def pair_up(images: Sequence[Path], root: Path, folders: Sequence[str], suffix: str) -> dict[Path, Path | None]:
    """Return the file of labels of each image, None where there is none.

    Args:
        images: n image files below ``root``.
        root: Data folder.
        folders: Names of folders of labels.
        suffix: Suffix of files of labels, such as ``".txt"``.

    Raises:
        ValueError: If two images share a file.
    """
    pairs: dict[Path, Path | None] = {}
    owners: dict[Path, Path] = {}
    with track(images, "looking for the labels of {}".format, quick=True) as tracked:
        for image in tracked:
            found = next((path for path in partners(image, root, folders, [f"{image.stem}{suffix}"]) if path.is_file()), None)
            pairs[image] = found
            if found is not None and owners.setdefault(found, image) != image:
                cure = "rename one, and its labels"
                raise ValueError(f"the images {owners[found]} and {image.name} share the labels {found}: {cure}")
    return pairs


def partners(image: Path, root: Path, folders: Sequence[str], names: Sequence[str]) -> Iterator[Path]:
    """Yield the places where the labels of an image may be, the most likely first.

    These are the image's place with its last folder of images replaced by one of labels, a folder of labels in ``root``
    or beside the image, and the image's own folder.

    Args:
        image: Image file below ``root``.
        root: Data folder.
        folders: Names of folders of labels.
        names: File names that the labels may have.

    Example:
        >>> places = partners(Path("d/train/images/a.jpg"), Path("d"), ["labels"], ["a.txt"])
        >>> [path.as_posix() for path in places]
        ['d/train/labels/a.txt', 'd/train/images/a.txt']
        >>> [path.as_posix() for path in partners(Path("d/train/a.jpg"), Path("d"), ["labels"], ["a.txt"])]
        ['d/labels/train/a.txt', 'd/train/labels/a.txt', 'd/train/a.txt']
    """
    parts = image.parent.relative_to(root).parts
    positions = [position for position, part in enumerate(parts) if part in IMAGE_FOLDERS]
    for folder in folders:
        if positions:
            before, behind = parts[: positions[-1]], parts[positions[-1] + 1 :]
            places = [root.joinpath(*before, folder, *behind)]
        else:
            places = [root.joinpath(folder, *parts), image.parent / folder]
        yield from (place / name for place in dict.fromkeys(places) for name in names)
    yield from (image.parent / name for name in names)
