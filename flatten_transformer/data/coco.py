"""Read and check COCO annotation files; store them packed, to be shared between worker processes."""

# n objects of an image.

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import mask as rle

from flatten_transformer.data.coco_boxes import Box, check_area, check_box, check_meaning
from flatten_transformer.data.coco_json import brief, is_id, load_coco, read_categories, read_images, unique
from flatten_transformer.data.coco_masks import check_mask, check_unit, encode
from flatten_transformer.data.source import draw_share
from flatten_transformer.utils.progress import track

_MIN_SIDE_PX = 0.01  # torchvision rejects empty boxes, and float32 can lose a shorter side
CROWDS = "crowds"  # of annotations left out, the one reason of those that the evaluation knows
Content = Mapping[str, Sequence[Any]]


class CocoObject(NamedTuple):
    """One object of an image."""

    annotation_id: int
    box: Box  # left, top, right, bottom in pixels, within the image
    label: int  # 0 … K - 1
    segmentation: Any  # polygons, or a run-length encoding


class CocoImage(NamedTuple):
    """One image and its training objects; crowds and empty boxes are left out."""

    image_id: int
    file_name: str
    height: int
    width: int
    objects: list[CocoObject]


@dataclass(frozen=True)
class CocoFile:
    """Contents of an annotation file.

    Args:
        path: Annotation file.
        class_names: K names, ordered by category id.
        category_ids: COCO category id of each class; ids may have gaps.
        images: One entry per image, in file order.
        truth: Ground truth for evaluation: the same annotations plus crowds, each with its area.
        left_out: Annotations not used for training, by reason.
    """

    path: Path
    class_names: list[str]
    category_ids: list[int]
    images: Sequence[CocoImage]
    truth: dict[str, Any]
    left_out: dict[str, list[str]] = field(default_factory=dict)


class Packed(Sequence[Any]):
    """A list pickled into one block of memory, which forked workers share instead of copying object by object.

    Args:
        items: Picklable items.

    Example:
        >>> packed = Packed(["a", (1, 2)])
        >>> len(packed), packed[1]
        (2, (1, 2))
    """

    def __init__(self, items: Sequence[Any]) -> None:
        with track(items, lambda _: "packing the annotations", quick=True) as tracked:
            pickled = [pickle.dumps(item, protocol=-1) for item in tracked]
        self._ends = np.cumsum([len(item) for item in pickled], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return pickle.loads(self._bytes[start : int(self._ends[index])].tobytes())


def read_coco(path: Path, *, masks: bool) -> CocoFile:
    """Read an annotation file and validate every entry.

    Boxes are clipped to their image. Boxes left empty by that and, with masks, objects with an empty mask are left out.
    Crowds are not trained on, but evaluated as COCO's tool does.

    Args:
        path: JSON file in COCO's format.
        masks: Require a mask for every object; if False, masks are ignored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or an entry is malformed; the message holds the entry's id.

    Example:
        >>> import json
        >>> path = getfixture("tmp_path") / "boxes.json"
        >>> image = {"id": 7, "file_name": "a.jpg", "height": 4, "width": 6}
        >>> box = {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 1, 9, 2], "iscrowd": 0}
        >>> _ = path.write_text(json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 90, "name": "cat"}]}))
        >>> read_coco(path, masks=False).images[0].objects
        [CocoObject(annotation_id=1, box=(1.0, 1.0, 6.0, 3.0), label=0, segmentation=None)]
    """
    return to_coco(path, load_coco(path), masks=masks)


def to_coco(path: Path, content: Content, *, masks: bool, label: Callable[[int], str] | None = None) -> CocoFile:
    """Validate every entry of an annotation file, or of another format converted to one.

    Args:
        path: Where the annotations are, for messages.
        content: The lists ``images``, ``annotations`` and ``categories``.
        masks: As for :func:`read_coco`.
        label: Maps an annotation's id to where it stands in ``path``, such as ``"a.txt, line 3"``, in a converted format; its
            boxes are not doubted as those of a file that says "bbox" are.

    Raises:
        ValueError: If an entry is malformed.
    """
    names = read_categories(path, content["categories"])
    images = read_images(path, content["images"])
    annotations = _annotations(path, content["annotations"], images, names, masks, label or _entry)
    if label is None:
        _check_boxes(path, [each.entry for each in annotations if each.reason != CROWDS], images)
    labels = {category: number for number, category in enumerate(names)}
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    left_out: dict[str, list[str]] = {}
    for entry, box, reason in annotations:
        if reason:
            left_out.setdefault(reason, []).append((label or _entry)(entry["id"]))
        else:
            each = CocoObject(entry["id"], box, labels[entry["category_id"]], entry.get("segmentation"))
            objects[entry["image_id"]].append(each)
    packed = [CocoImage(key, im["file_name"], im["height"], im["width"], objects[key]) for key, im in images.items()]
    evaluated = [entry for entry, _, reason in annotations if reason in (None, CROWDS)]
    categories = [{"id": category, "name": name} for category, name in names.items()]
    truth = {"images": list(images.values()), "annotations": evaluated, "categories": categories}
    return CocoFile(path, list(names.values()), list(names), Packed(packed), truth, left_out)


def _entry(identity: int) -> str:
    return f"annotation {identity}"


def select(file: CocoFile, chosen: Collection[int]) -> CocoFile:
    """Return the annotations of some of the images of a file; what it leaves out stays.

    Args:
        file: Annotation file.
        chosen: Indices of images.
    """
    ids = {file.truth["images"][index]["id"] for index in chosen}
    images = [entry for entry in file.truth["images"] if entry["id"] in ids]
    annotations = [entry for entry in file.truth["annotations"] if entry["image_id"] in ids]
    packed = Packed([file.images[index] for index in sorted(chosen)])
    return replace(file, images=packed, truth={**file.truth, "images": images, "annotations": annotations})


def split_off_images(file: CocoFile, share: float) -> tuple[CocoFile, CocoFile]:
    """Split off a share of the images, drawn with a fixed seed; return the rest and the share.

    An image counts to the rarest class on it, and each of these groups gives its share as a class does in
    :func:`~flatten_transformer.data.source.split_off`.

    Args:
        file: Annotation file.
        share: Share between 0 and 1.

    Raises:
        ValueError: If no image can be spared.
    """
    labels = [[each.label for each in image.objects] for image in file.images]
    counts = Counter(label for each in labels for label in each)
    rarest = [min(each, key=lambda label: (counts[label], label), default=-1) for each in labels]
    chosen = draw_share(rarest, share)
    if not any(rarest[index] >= 0 for index in chosen):
        raise ValueError(
            f"{file.path}: no image can be kept for validation, as no two have objects of one class: add images, or a folder val"
        )
    return select(file, set(range(len(labels))) - chosen), select(file, chosen)


class _Annotation(NamedTuple):
    """An annotation as the evaluation reads it, its clipped box, and why training leaves it out, if it does."""

    entry: dict[str, Any]
    box: Box
    reason: str | None


def _annotations(
    path: Path,
    entries: Sequence[Any],
    images: Mapping[int, Any],
    names: Mapping[int, str],
    masks: bool,
    label: Callable[[int], str],
) -> list[_Annotation]:
    checked = []
    with track(unique(path, "annotation", entries), lambda _: f"annotations of {path}", quick=True) as tracked:
        for annotation in tracked:
            where, image_id, category_id = f"{path}: {label(annotation['id'])}", *map(annotation.get, ("image_id", "category_id"))
            if not is_id(image_id) or image_id not in images:
                raise ValueError(f"{where} is of image {brief(image_id)}, which the file does not list")
            if not is_id(category_id) or category_id not in names:
                raise ValueError(f"{where} has the unknown category_id {brief(category_id)}: list it in categories")
            checked.append(_check_annotation(where, annotation, images[image_id], masks))
    return checked


def _check_boxes(path: Path, entries: Sequence[Mapping[str, Any]], images: Mapping[int, Mapping[str, Any]]) -> None:
    """Check the boxes of a file against each other."""
    if entries:
        listed = [images[entry["image_id"]] for entry in entries]
        sizes = np.array([(image["width"], image["height"]) for image in listed], dtype=np.float64)
        check_meaning(path, [entry["id"] for entry in entries], np.array([entry["bbox"] for entry in entries]), sizes)


def _check_annotation(where: str, annotation: Mapping[str, Any], image: Mapping[str, Any], masks: bool) -> _Annotation:
    numbers, crowd, area = check_box(where, annotation.get("bbox")), annotation.get("iscrowd", 0), annotation.get("area")
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise ValueError(f"{where} has iscrowd {brief(crowd)}: write 0, or 1 for a crowd")
    entry = {key: annotation[key] for key in ("id", "image_id", "category_id")} | {"bbox": list(numbers), "iscrowd": int(crowd)}
    if masks:
        entry["segmentation"] = check_mask(where, annotation.get("segmentation"), image["height"], image["width"])
        check_unit(where, entry["segmentation"], numbers)
    box = _clipped(numbers, image)
    reason = _reason(entry, box, masks)
    if reason in (None, CROWDS):
        entry["area"] = _area(where, entry, image) if area is None else check_area(where, area)
    return _Annotation(entry, box, reason)


def _area(where: str, entry: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    """Return the area of the mask in pixels, or of the box if there is no mask."""
    if entry.get("segmentation"):
        return float(rle.area(encode(entry["segmentation"], image["height"], image["width"])))
    return check_area(where, entry["bbox"][2] * entry["bbox"][3])


def _clipped(numbers: Sequence[float], image: Mapping[str, Any]) -> Box:
    """Clip a box to its image; return left, top, right and bottom."""
    left, top, width, height = numbers
    right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
    return max(left, 0.0), max(top, 0.0), float(right), float(bottom)


def _reason(entry: Mapping[str, Any], box: Box, masks: bool) -> str | None:
    """Return why training leaves an object out; None if it does not."""
    if min(box[2] - box[0], box[3] - box[1]) < _MIN_SIDE_PX:
        return "boxes without area in their image"
    if masks and not entry["segmentation"]:
        return "masks without area"
    return CROWDS if entry["iscrowd"] else None
