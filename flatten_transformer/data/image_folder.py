"""Image folders with one folder per class, optionally below one folder per split."""

# n images.

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flatten_transformer.data.image_files import SUFFIXES as SUFFIXES
from flatten_transformer.data.image_files import read_image
from flatten_transformer.data.source import Format, Source, Split, Splits
from flatten_transformer.data.split_names import fold_of, mentioned_split, split_of
from flatten_transformer.data.walk import MADE_HERE, Excluded, Identity, Walk, group_by_reason, identities, list_folder, walk
from flatten_transformer.utils.progress import track

_LOOSE = "image in no class folder"
_BESIDE = "in a folder beside the splits"
_FLAT = "in a split without class folders"
_EMPTY = "class folder without images"
_DUPLICATE = "file that counts already under another name"
_IN_TRAIN = "file that is among the training images too"


class ImageFiles(Source):
    """Image files and their classes.

    Args:
        files: n paths.
        labels: n class numbers.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int]) -> None:
        self.files = list(files)
        self.labels: list[int] = list(labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.files[index]), self.labels[index]

    def name(self, index: int) -> str:
        """Return the path of the file."""
        return str(self.files[index])


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted by path; hidden ones are left out.

    Args:
        folder: Searched recursively, following links but entering no folder twice; outputs of this library are skipped.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> for name in ("b.PNG", "a.jpg", "._a.jpg", "notes.txt"):
        ...     (folder / name).touch()
        >>> [path.name for path in find_images(folder)]
        ['a.jpg', 'b.PNG']
    """
    return [image.path for image in walk(folder).images]


def open_folder(root: Path) -> Splits:
    """Open classes and images in ``root/train/<class>/``, ``root/val/<class>/`` and ``root/test/<class>/``.

    Common variants of the split names, such as ``Training_Set`` or ``validation``, are recognised. Without a training
    folder, the classes are the folders in ``root`` itself. A file counts once, however many links lead to it. Files in no
    split are listed in ``left_out``; ambiguous layouts are rejected.

    Args:
        root: Data folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are fewer than two classes, a class has no training image or occurs only in ``val`` or
            ``test``, or splits and classes cannot be told apart.

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
    folders = list_folder(root).folders
    splits = _splits(root, folders)
    train = splits.get("train", root)
    classes, left_out = _classes(train, splits)
    walks: dict[Split, dict[str, Walk]] = {"train": classes}
    if train != root:
        left_out += _beside(root, [folder for folder in folders if folder not in splits.values()])
    for split in splits.keys() - {"train"}:
        walks[split], more = _evaluation_split(splits[split], list(classes), train)
        left_out += more
    images, more = _deduplicate(walks)
    for split, folder in splits.items():
        if not images[split].labels:
            besides = f" besides those of {train}" if any(each.reason == _IN_TRAIN for each in more) else ""
            raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)}){besides}: add some, or remove it")
    return Splits(list(classes), images["train"], images.get("val"), images.get("test"), group_by_reason(root, left_out + more))


def _splits(root: Path, folders: Sequence[Path]) -> dict[Split, Path]:
    """Return the split folders: those named like one that contain class folders."""
    named = [(folder, split) for folder in folders if (split := split_of(folder.name))]
    splits: dict[Split, Path] = {}
    flat: dict[Path, Split] = {}
    for folder, split in named:
        if not list_folder(folder).folders:
            flat[folder] = split
        elif split in splits:
            raise ValueError(f"{splits[split]} and {folder} are both the split {split}: merge them, or move one elsewhere")
        else:
            splits[split] = folder
    if "train" in splits:
        return splits
    _check_flat(root, flat, alone=not splits)
    if "val" in splits:
        missing = f"put the images to learn from into {root}/train"
        raise ValueError(f"{root} has class folders in {splits['val'].name} but none in train: {missing}")
    _check_mentions(root, [folder for folder in folders if folder not in splits.values()])
    return splits


def _check_flat(root: Path, flat: dict[Path, Split], alone: bool) -> None:
    """Reject folders named like splits without class folders, except a lone class ``train`` among other vehicles."""
    if not flat or (alone and len(flat) == 1 and next(iter(flat)).name.lower() == "train"):
        return
    folder = next(iter(flat))
    raise ValueError(
        f"{folder} is called like a split but has no class folders: put the images of each class into a folder of its name, "
        f"such as {folder}/cat/1.jpg; if it is a class, move all classes into {root}/train, or else move it elsewhere"
    )


def _check_mentions(root: Path, folders: Sequence[Path]) -> None:
    """Reject folders whose names merely mention splits or folds, if all do or if two of them share classes."""
    mentions = {folder: split for folder in folders if (split := mentioned_split(folder.name) or fold_of(folder.name))}
    inside = {folder: {each.name for each in list_folder(folder).folders} for folder in mentions}
    pairs = [(a, b) for a in mentions for b in mentions if mentions[a] < mentions[b]]
    for one, other in pairs:
        if len(mentions) == len(folders) or inside[one] & inside[other]:
            cure = f"rename them train, val and test; if they are classes, move all classes into {root}/train"
            raise ValueError(f"{one.name} and {other.name} in {root} seem to be splits, not classes: {cure}")


def _classes(train: Path, splits: dict[Split, Path]) -> tuple[dict[str, Walk], list[Excluded]]:
    """Return the contents of each class folder, and the files left out in and beside them."""
    listing = list_folder(train)
    left_out = [*listing.left_out, *(Excluded(_LOOSE, str(image.path)) for image in listing.images)]
    with track([folder for folder in listing.folders if folder not in splits.values()], _class_folder, quick=True) as folders:
        walks = {folder.name: walk(folder) for folder in folders}
    for name in [name for name, contents in walks.items() if _holds_only_outputs(contents)]:
        left_out += walks.pop(name).left_out
    _check_classes(train, walks)
    return walks, left_out + [each for contents in walks.values() for each in contents.left_out]


def _class_folder(folder: Path) -> str:
    return f"class folder {folder}"


def _holds_only_outputs(contents: Walk) -> bool:
    return not contents.images and any(each.reason == MADE_HERE for each in contents.left_out)


def _check_classes(train: Path, walks: dict[str, Walk]) -> None:
    layout = f"put the images of each class into a folder of its name, such as {train}/cat/1.jpg"
    if not walks:
        raise ValueError(f"{train} {'has no class folders' if any(train.iterdir()) else 'is empty'}: {layout}")
    if len(walks) == 1 and any(split_of(folder.name) for folder in list_folder(train / next(iter(walks))).folders):
        raise ValueError(f"{train} has no splits or class folders, but {train / next(iter(walks))} has: set data.root to that")
    if len(walks) == 1:
        raise ValueError(f"{train} has one class, {next(iter(walks))!r}, but it takes two to tell apart: {layout}")
    alike: dict[str, str] = {}
    for name, contents in walks.items():
        other = alike.setdefault(_normalised(name), name)
        if other != name:
            raise ValueError(f"the classes {other!a} and {name!a} in {train} look the same: merge or rename them")
        if not contents.images:
            others = sorted({each.reason for each in contents.left_out})
            only = f" but left out is: {'; '.join(others)}" if others else ""
            raise ValueError(f"class folder {train / name} holds no image ({', '.join(SUFFIXES)}){only}: add some, or remove it")
        _check_inside(train / name, contents)


def _normalised(name: str) -> str:
    """Normalise Unicode form, spaces and case of a class name; single letters keep their case."""
    normal = " ".join(unicodedata.normalize("NFKC", name).split())
    return normal if len(normal) == 1 else normal.casefold()


def _check_inside(folder: Path, contents: Walk) -> None:
    """Reject a class folder that contains splits: its test images would be trained on."""
    parts = {parent.relative_to(folder).parts[0] for parent in {image.path.parent for image in contents.images} - {folder}}
    splits = {split: name for name in sorted(parts) if (split := split_of(name))}
    if splits.keys() - {"train"}:
        name = next(name for split, name in splits.items() if split != "train")
        cure = f"splits belong above the classes, such as {folder.parent}/{name}/{folder.name}"
        raise ValueError(f"class folder {folder} has a folder {name}, whose images would be learned: {cure}")


def _beside(root: Path, folders: Sequence[Path]) -> list[Excluded]:
    """Return the files left out beside the splits: loose images and other folders."""
    listing = list_folder(root)
    left_out = [*listing.left_out, *(Excluded(_LOOSE, str(image.path)) for image in listing.images)]
    for folder in folders:
        contents = walk(folder)
        if _holds_only_outputs(contents):
            left_out += contents.left_out
        else:
            reason = _FLAT if split_of(folder.name) else _BESIDE
            left_out += [Excluded(reason, str(image.path)) for image in contents.images] or [Excluded(reason, f"{folder}/")]
    return left_out


def _evaluation_split(folder: Path, class_names: Sequence[str], train: Path) -> tuple[dict[str, Walk], list[Excluded]]:
    """Return the contents of the class folders of an evaluation split, a subset of the classes of ``train``."""
    listing = list_folder(folder)
    left_out = [*listing.left_out, *(Excluded(_LOOSE, str(image.path)) for image in listing.images)]
    walks: dict[str, Walk] = {}
    with track(listing.folders, _class_folder, quick=True) as folders:
        for path in folders:
            contents = walk(path)
            left_out += contents.left_out
            if not contents.images:
                left_out += [] if _holds_only_outputs(contents) else [Excluded(_EMPTY, f"{path}/")]
            elif path.name in class_names:
                walks[path.name] = contents
            else:
                unknown = _describe_unknown(path.name, class_names)
                raise ValueError(f"{folder} has the class {unknown}, which {train} lacks: rename it, or add it to {train}")
    return {name: walks[name] for name in class_names if name in walks}, left_out


def _describe_unknown(name: str, class_names: Sequence[str]) -> str:
    like = next((other for other in class_names if _normalised(other) == _normalised(name)), None)
    return repr(name) if like is None else f"{name!a}, which is not quite {like!a}"


def _deduplicate(walks: dict[Split, dict[str, Walk]]) -> tuple[dict[Split, ImageFiles], list[Excluded]]:
    """Return the images of each split, each file once and no training image elsewhere, and the files this leaves out.

    Raises:
        ValueError: If a file is in two classes.
    """
    numbers = {name: number for number, name in enumerate(walks["train"])}
    placed = [(split, name, image) for split, classes in walks.items() for name, each in classes.items() for image in each.images]
    known: dict[Split, dict[Identity, tuple[str, Path]]] = {split: {} for split in walks}
    kept: dict[Split, ImageFiles] = {split: ImageFiles([], []) for split in walks}
    left_out: list[Excluded] = []
    with track(placed, lambda each: f"files that are there twice: {each[2].path}", quick=True) as tracked:
        for (split, name, image), identity in zip(tracked, identities([image for _, _, image in placed]), strict=True):
            reason = identity and _duplicate_reason(split, name, image.path, identity, known)
            if reason:
                left_out.append(Excluded(reason, str(image.path)))
            else:
                kept[split].files.append(image.path)
                kept[split].labels.append(numbers[name])
    return kept, left_out


def _duplicate_reason(
    split: Split, name: str, path: Path, identity: Identity, known: dict[Split, dict[Identity, tuple[str, Path]]]
) -> str | None:
    """Return why a file is a duplicate, or None after recording it as new."""
    if split != "train" and identity in known["train"]:
        return _IN_TRAIN
    other, first = known[split].setdefault(identity, (name, path))
    if other != name:
        raise ValueError(f"{first} and {path} are one file, which cannot be both {other!r} and {name!r}: remove one")
    return None if first == path else _DUPLICATE


FORMAT = Format(("folder",), False, lambda request: open_folder(request.folder))
