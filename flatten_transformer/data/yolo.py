"""Boxes and polygons in YOLO's text files, one for each image, read as a COCO file would be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from flatten_transformer.data.annotated import UNREADABLE, Annotated, BoxDataSet, Conversion, box_split, measured
from flatten_transformer.data.class_list import read_text
from flatten_transformer.data.coco_json import brief
from flatten_transformer.data.image_files import SUFFIXES
from flatten_transformer.data.pairing import IMAGE_FOLDERS, images_of, pair_up, split_folders
from flatten_transformer.data.safe_paths import check_inside
from flatten_transformer.data.source import Split
from flatten_transformer.data.split_names import split_of
from flatten_transformer.data.yolo_names import ClassList, find_classes, listed_images, read_classes
from flatten_transformer.utils.progress import track

_LABELS = ("labels", "Labels")
_SLACK = 0.01  # of a share: rounding may carry a box over the edge
_LINE = "a class number and four shares of the image, centre x and y, width and height, or the x and y of a polygon's corners"
_NO_LABELS = {"classes.txt", "notes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "README.txt"}
Row = tuple[int, Sequence[float]]  # class number, shares of the image


def find_yolo(root: Path) -> Path | None:
    """Return what speaks for YOLO's format in a folder: a label file, or else a YAML file with names; None for nothing.

    Example:
        >>> root = getfixture("tmp_path")
        >>> (root / "labels").mkdir()
        >>> (root / "labels" / "a.txt").touch()
        >>> find_yolo(root).name
        'a.txt'
    """
    near = (path for path in sorted(root.iterdir()) if path.is_dir() and (path.name in IMAGE_FOLDERS or split_of(path.name)))
    places = [root, *near]
    for folder in (place / name for place in places for name in _LABELS if (place / name).is_dir()):
        if (label := next(_label_files(folder), None)) is not None:
            return label
    for place in places:
        beside = (path for path in sorted(place.iterdir()) if path.suffix == ".txt" and path.name not in _NO_LABELS)
        if (label := next((path for path in beside if _has_image(path)), None)) is not None:
            return label
    classes = find_classes(root)
    return classes if classes is not None and classes.suffix in (".yaml", ".yml") else None


def _label_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.txt")) if path.name not in _NO_LABELS)


def _has_image(label: Path) -> bool:
    return any(label.with_suffix(suffix).is_file() for each in SUFFIXES for suffix in (each, each.upper()))


def open_yolo(
    root: Path, *, masks: bool, skip: bool = False, links: Sequence[Path] | None = (), file: Path | None = None
) -> BoxDataSet:
    """Open images and their text files of labels, as ultralytics lays them out.

    Splits are those of the YAML file, if they lie in ``root``, or folders, ``images/train/`` or ``train/images/``. The labels
    of an image are where ``images`` is replaced by ``labels`` in its path, or beside it; an image without a file of labels has
    no objects. Class names come from ``data.yaml`` or ``classes.txt``.

    Args:
        root: Data folder.
        masks: Require a polygon on every line; if False, a polygon gives its box.
        skip: Leave out images that cannot be read.
        links: Further folders that links may lead to; None for any.
        file: The YAML file; None to find it.

    Raises:
        FileNotFoundError: If nothing names the classes.
        ValueError: If the layout or a file is malformed; the message names file and line. That of a file of labels comes
            when its split is read.
    """
    classes = read_classes(root, file)
    images = _images(root, classes)
    notes = []
    if "val" in images:
        known = set(images["train"])
        own = [path for path in images["val"] if path not in known]
        if len(own) < len(images["val"]):
            notes.append(f"{len(images['val']) - len(own)} val images are training images too: not among those to judge by")
        images["val"] = own
    pairs = {split: pair_up(files, root, _LABELS, ".txt") for split, files in images.items() if files}
    used = {label for each in pairs.values() for label in each.values() if label}
    for split, each in pairs.items():
        without = sum(label is None for label in each.values())
        if without:
            notes.append(f"{without} of {len(each)} {split} images have no file of labels: taken as images without objects")
    folders = {label.parent for label in used}
    orphans = sorted(path for folder in folders for path in folder.glob("*.txt") if path not in used | {classes.path})
    orphans = [path for path in orphans if path.name not in _NO_LABELS]
    allowed = None if links is None else [root, *links, *folders]
    splits = {
        split: box_split(root, partial(_read, root, classes, each, masks, skip, allowed, orphans if split == "train" else []))
        for split, each in pairs.items()
    }
    return BoxDataSet(splits, notes)


def _images(root: Path, classes: ClassList) -> dict[Split, list[Path]]:
    """Return the images of each split."""
    if "train" in classes.places:
        return {
            split: list(dict.fromkeys(path for place in places for path in _images_at(place, root)))
            for split, places in classes.places.items()
        }
    return {split: images_of(folder, _LABELS) for split, folder in split_folders(root, _LABELS).items()}


def _images_at(place: Path, root: Path) -> list[Path]:
    return images_of(place, _LABELS) if place.is_dir() else listed_images(place, root)


def _read(
    root: Path,
    classes: ClassList,
    pairs: dict[Path, Path | None],
    masks: bool,
    skip: bool,
    allowed: Sequence[Path] | None,
    orphans: Sequence[Path],
) -> Annotated:
    conversion = Conversion(root, classes.path, classes.names)
    with track(measured(pairs, skip=skip), lambda each: f"labels of {each[0]}", quick=True) as tracked:
        for image, size in tracked:
            if size is None:
                conversion.leave_out(UNREADABLE, str(image.relative_to(root)))
                continue
            conversion.add_image(image, *size)
            label = pairs[image]
            if label is not None:
                check_inside(label, allowed)
                _add_labels(conversion, label, size)
    for path in orphans:
        conversion.leave_out("labels of no image", str(path.relative_to(root)))
    links = [path for path in {image.parent for image in pairs} if path != root]
    return Annotated(conversion.build(masks=masks), root, links)


def _add_labels(conversion: Conversion, label: Path, size: tuple[int, int]) -> None:
    seen: set[tuple[int, tuple[float, ...]]] = set()
    name = label.relative_to(conversion.root)
    for number, line in enumerate(read_text(label).split("\n"), 1):
        if not line.strip():
            continue
        category, shares = _row(f"{label}, line {number}", line, len(conversion.categories))
        where = f"{name}, line {number}"
        if (category, tuple(shares)) in seen:
            conversion.leave_out("lines that stand twice", where)
            continue
        seen.add((category, tuple(shares)))
        pixels = [share * size[position % 2] for position, share in enumerate(shares)]
        if len(pixels) == 4:
            x, y, width, height = pixels
            conversion.add_box(category, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), where)
        else:
            corners = (min(pixels[::2]), min(pixels[1::2]), max(pixels[::2]), max(pixels[1::2]))
            conversion.add_box(category, corners, where, polygon=pixels)


def _row(where: str, line: str, classes: int) -> Row:
    """Return the class number and the shares of a line."""
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        raise ValueError(f"{where} is {brief(line.strip())}, not numbers alone: write {_LINE}") from None
    if len(numbers) == 6:
        raise ValueError(f"{where} has a sixth number: leave a score out, and write {_LINE}")
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise ValueError(f"{where} has {len(numbers)} numbers: write {_LINE}")
    category, *shares = numbers
    if not category.is_integer() or not 0 <= category < classes:
        known = f"0 … {classes - 1}" if classes > 1 else "0 alone"
        raise ValueError(f"{where} is of class {line.split()[0][:20]}, but the classes are {known}: name it, or correct the line")
    outside = [share for share in shares if not -_SLACK <= share <= 1 + _SLACK]
    if outside:
        raise ValueError(f"{where} holds {outside[0]:g}, which is no share of the image in 0 … 1: write {_LINE}, not pixels")
    return int(category), shares
