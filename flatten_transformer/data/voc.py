"""Boxes in Pascal VOC's XML files, one for each image, read as a COCO file would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from flatten_transformer.data.annotated import UNREADABLE, Annotated, BoxDataSet, Conversion, box_split, measured
from flatten_transformer.data.class_list import read_class_names, read_text
from flatten_transformer.data.coco_json import brief
from flatten_transformer.data.pairing import images_of, pair_up, split_folders
from flatten_transformer.data.safe_paths import check_inside
from flatten_transformer.data.source import Split
from flatten_transformer.data.split_names import split_of
from flatten_transformer.data.voc_xml import VocImage, VocObject, read_voc_xml
from flatten_transformer.utils.progress import track

_ANNOTATIONS = ("Annotations", "annotations", "labels", "xmls")
_LISTS = ("classes.txt", "labels.txt")
Files = Mapping[Path, VocImage]


def find_voc(root: Path) -> Path | None:
    """Return an XML file that speaks for Pascal VOC's format in a folder; None for nothing.

    Example:
        >>> root = getfixture("tmp_path")
        >>> (root / "Annotations").mkdir()
        >>> (root / "Annotations" / "a.xml").touch()
        >>> find_voc(root).name
        'a.xml'
    """
    children = [path for path in sorted(root.iterdir()) if path.is_dir() and (path.name in _ANNOTATIONS or split_of(path.name))]
    for place in (root, *children, *(path / name for path in children for name in _ANNOTATIONS)):
        if (found := next(iter(sorted(place.glob("*.xml"))), None)) is not None:
            return found
    nested = (path for name in _ANNOTATIONS for path in sorted((root / name).rglob("*.xml")))
    return next(nested, None)


def open_voc(root: Path, *, masks: bool, skip: bool = False, links: Sequence[Path] | None = ()) -> BoxDataSet:
    """Open ``JPEGImages/`` and ``Annotations/`` with an XML file of each image's name, splits in ``ImageSets/Main/*.txt``.

    Instead of these lists there may be folders, ``train/``, ``valid/`` and so on, with the XML files in ``Annotations/`` or
    beside the images. An image without an XML file has no objects. Classes are the names in all files, in alphabetical
    order, or those of ``classes.txt`` in ``root``, in its order.

    Pixels count from 1, as in Pascal VOC: xmin 1 is the left edge. Difficult objects are neither learned from nor judged.

    Args:
        root: Data folder.
        masks: Must be False: the format has boxes alone.
        skip: Leave out images that cannot be read.
        links: Further folders that links may lead to; None for any.

    Raises:
        ValueError: If the layout or a file is malformed; the message names file and line.
    """
    if masks:
        raise ValueError(f"{root} is in Pascal VOC's format, which has boxes and no masks: add --data.masks false")
    images = _images(root)
    pairs = {split: pair_up(files, root, _ANNOTATIONS, ".xml") for split, files in images.items() if files}
    if "train" not in pairs:
        raise ValueError(f"{root} holds no image to learn from: put them into JPEGImages/")
    labelled = [path for each in pairs.values() for path in each.values() if path]
    allowed = None if links is None else [root, *links, *{path.parent for path in labelled}]
    with track(labelled, "reading {}".format, quick=True) as tracked:
        files = {path: _read_xml(path, allowed) for path in tracked}
    names = _class_names(root, files)
    orphans = sorted({path for folder in {path.parent for path in files} for path in folder.glob("*.xml")} - files.keys())
    notes = []
    for split, each in pairs.items():
        if without := sum(path is None for path in each.values()):
            notes.append(f"{without} of {len(each)} {split} images have no XML file: taken as images without objects")
    splits = {
        split: box_split(root, partial(_read, root, names, each, files, skip, orphans if split == "train" else []))
        for split, each in pairs.items()
    }
    return BoxDataSet(splits, notes)


def _images(root: Path) -> dict[Split, list[Path]]:
    """Return the images of each split, by folders or by lists in ``ImageSets/Main``."""
    images = {split: images_of(folder, _ANNOTATIONS) for split, folder in split_folders(root, _ANNOTATIONS).items()}
    lists = root / "ImageSets" / "Main"
    if set(images) != {"train"} or not lists.is_dir():
        return images
    by_stem = {path.stem: path for path in images["train"]}
    names: tuple[tuple[Split, str], ...] = (("train", "train"), ("val", "val"), ("test", "test"))
    listed = {split: _listed(lists / f"{name}.txt", by_stem) for split, name in names if (lists / f"{name}.txt").is_file()}
    if "train" not in listed and (lists / "trainval.txt").is_file():
        listed["train"] = _listed(lists / "trainval.txt", by_stem)
        listed.pop("val", None)  # it is part of trainval
    return listed if "train" in listed else images


def _listed(file: Path, by_stem: Mapping[str, Path]) -> list[Path]:
    images: dict[Path, None] = {}
    for number, line in enumerate(read_text(file).split("\n"), 1):
        words = line.split()
        if words and words[-1:] != ["-1"]:  # of a class's list: not in this image
            name = line.strip() if line.strip() in by_stem else words[0]
            if name not in by_stem:
                raise ValueError(f"{file}, line {number}: there is no image {brief(name)}: add it, or remove the line")
            images[by_stem[name]] = None
    return list(images)


def _read_xml(path: Path, allowed: Sequence[Path] | None) -> VocImage:
    check_inside(path, allowed)
    return read_voc_xml(path)


def _class_names(root: Path, files: Files) -> list[str]:
    """Return the class names: those listed, or all that occur."""
    objects = [(path, each) for path, image in files.items() for each in image.objects]
    found = sorted({each.name for _, each in objects})
    file = next((root / name for name in _LISTS if (root / name).is_file()), None)
    if file is not None:
        names = read_class_names(file, least=1)
        for path, each in objects:
            if each.name not in names:
                cure = f"add it to {file}, or correct it"
                raise ValueError(f"{path}, line {each.line}: the class {brief(each.name)} is not in {file.name}: {cure}")
        return names
    alike: dict[str, str] = {}
    for name in found:
        if (other := alike.setdefault(" ".join(name.casefold().split()), name)) != name:
            path, each = next((path, each) for path, each in objects if each.name == name)
            raise ValueError(
                f"{path}, line {each.line}: the class {brief(name)} is not quite {brief(other)}, in other files: spell them alike"
            )
    if not found:
        raise ValueError(f"{root} holds no object in {len(files)} XML files of images: are their names those of the images?")
    return found


def _read(
    root: Path,
    names: Sequence[str],
    pairs: Mapping[Path, Path | None],
    files: Files,
    skip: bool,
    orphans: Iterable[Path],
) -> Annotated:
    conversion = Conversion(root, root / _folder_name(root, files), names)
    numbers = {name: number for number, name in enumerate(names)}
    for image, size in measured(pairs, skip=skip):
        path = pairs[image]
        if size is None:
            conversion.leave_out(UNREADABLE, str(image.relative_to(root)))
            continue
        conversion.add_image(image, *size)
        if path is not None:
            _check_size(path, files[path], image, size)
            for each in files[path].objects:
                where = f"{path.relative_to(conversion.path)}, line {each.line}"
                conversion.add_box(numbers[each.name], _corners(path, each, size), where, ignored=each.difficult)
    for path in orphans:
        conversion.leave_out("annotations of no image", str(path.relative_to(root)))
    links = [folder for folder in {image.parent for image in pairs} if folder != root]
    return Annotated(conversion.build(masks=False, ignored="difficult objects"), root, links)


def _folder_name(root: Path, files: Files) -> str:
    """Return the name of the folder of annotations that all files share, if they do."""
    tops = {path.relative_to(root).parts[0] for path in files}
    return tops.pop() if len(tops) == 1 and next(iter(tops)) in _ANNOTATIONS else ""


def _check_size(path: Path, voc: VocImage, image: Path, size: tuple[int, int]) -> None:
    if voc.width and voc.height and (voc.width, voc.height) != size:
        raise ValueError(
            f"{path} says {voc.width} × {voc.height} pixels (width × height), but {image.name} has {size[0]} × {size[1]}: "
            f"one of them is not the original"
        )


def _corners(path: Path, voc: VocObject, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom in pixels from 0."""
    xmin, ymin, xmax, ymax = voc.sides
    if min(size) > 2 and all(0 <= side <= 1 for side in voc.sides) and max(voc.sides) > 0:
        raise ValueError(f"{path}, line {voc.line}: a box lies within 0 … 1: write pixels, not shares of the image")
    return xmin - 1, ymin - 1, xmax, ymax
