"""COCO's annotation files: read, checked, and packed so that many processes can share them."""

# n objects of an image.

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import mask as rle

from flatten_transformer.data.coco_boxes import Box, check_area, check_box, check_meaning
from flatten_transformer.data.coco_json import brief, is_id, load_coco, read_categories, read_images, unique
from flatten_transformer.data.coco_masks import check_mask, check_unit, encode

_LEAST = 0.01  # pixels: torchvision refuses boxes without a side, and float32 can lose a shorter one
_CROWDS = "crowds"


class CocoObject(NamedTuple):
    """One object of an image."""

    annotation_id: int
    box: Box  # left, top, right, bottom in pixels, within the image
    label: int  # 0 … K - 1
    segmentation: Any  # polygons, or a run-length encoding


class CocoImage(NamedTuple):
    """One image, and what there is to learn of it: crowds and boxes without area are left out."""

    image_id: int
    file_name: str
    height: int
    width: int
    objects: list[CocoObject]


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says.

    Args:
        path: The file.
        class_names: Name of each class, K, in the order of their ids.
        category_ids: COCO's id of each class; there may be holes.
        images: One entry an image, in the order of the file.
        truth: What the evaluation compares with: the same annotations, and the crowds, each with its area.
        left_out: Names of the annotations that are not learned from, by the reason.
    """

    path: Path
    class_names: list[str]
    category_ids: list[int]
    images: Sequence[CocoImage]
    truth: dict[str, Any]
    left_out: dict[str, list[str]] = field(default_factory=dict)


class Packed(Sequence[Any]):
    """A list in one block of memory: processes that read it share it, where they would copy a list of objects bit by bit.

    Args:
        items: What can be pickled.

    Example:
        >>> packed = Packed(["a", (1, 2)])
        >>> len(packed), packed[1]
        (2, (1, 2))
    """

    def __init__(self, items: Sequence[Any]) -> None:
        pickled = [pickle.dumps(item, protocol=-1) for item in items]
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
    """Read an annotation file, and check everything in it.

    Boxes are cut to their image. Left out are boxes without area there and, where masks are wanted, objects whose mask has
    none; crowds are not learned from, but judged by as COCO's tool does.

    Args:
        path: A JSON file in COCO's format.
        masks: Every object must have a mask; without, no mask is looked at.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, or an entry is not as it must be; the message holds its id.

    Example:
        >>> import json
        >>> path = getfixture("tmp_path") / "boxes.json"
        >>> image = {"id": 7, "file_name": "a.jpg", "height": 4, "width": 6}
        >>> box = {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 1, 9, 2], "iscrowd": 0}
        >>> _ = path.write_text(json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 90, "name": "cat"}]}))
        >>> read_coco(path, masks=False).images[0].objects
        [CocoObject(annotation_id=1, box=(1.0, 1.0, 6.0, 3.0), label=0, segmentation=None)]
    """
    content = load_coco(path)
    names = read_categories(path, content["categories"])
    images = read_images(path, content["images"])
    found = _annotations(path, content["annotations"], images, names, masks)
    labels = {category: label for label, category in enumerate(names)}
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    left_out: dict[str, list[str]] = {}
    for entry, box, reason in found:
        if reason:
            left_out.setdefault(reason, []).append(f"annotation {entry['id']}")
        else:
            each = CocoObject(entry["id"], box, labels[entry["category_id"]], entry.get("segmentation"))
            objects[entry["image_id"]].append(each)
    packed = [CocoImage(key, im["file_name"], im["height"], im["width"], objects[key]) for key, im in images.items()]
    judged = [entry for entry, _, reason in found if reason in (None, _CROWDS)]
    categories = [{"id": category, "name": name} for category, name in names.items()]
    truth = {"images": list(images.values()), "annotations": judged, "categories": categories}
    return CocoFile(path, list(names.values()), list(names), Packed(packed), truth, left_out)


class _Annotation(NamedTuple):
    """An annotation as the evaluation reads it, its box within the image, and why it is not learned from, if so."""

    entry: dict[str, Any]
    box: Box
    reason: str | None


def _annotations(
    path: Path, entries: Sequence[Any], images: Mapping[int, Any], names: Mapping[int, str], masks: bool
) -> list[_Annotation]:
    found = []
    for annotation in unique(path, "annotation", entries):
        where, image_id, category_id = f"{path}: annotation {annotation['id']}", *map(annotation.get, ("image_id", "category_id"))
        if not is_id(image_id) or image_id not in images:
            raise ValueError(f"{where} is of image {brief(image_id)}, which the file does not list")
        if not is_id(category_id) or category_id not in names:
            raise ValueError(f"{where} has the unknown category_id {brief(category_id)}: list it in categories")
        found.append(_checked(where, annotation, images[image_id], masks))
    _check_boxes(path, [each.entry for each in found if each.reason != _CROWDS], images)
    return found


def _check_boxes(path: Path, entries: Sequence[Mapping[str, Any]], images: Mapping[int, Mapping[str, Any]]) -> None:
    """Look at the boxes of a file all together."""
    if entries:
        shown = [images[entry["image_id"]] for entry in entries]
        sizes = np.array([(image["width"], image["height"]) for image in shown], dtype=np.float64)
        check_meaning(path, [entry["id"] for entry in entries], np.array([entry["bbox"] for entry in entries]), sizes)


def _checked(where: str, annotation: Mapping[str, Any], image: Mapping[str, Any], masks: bool) -> _Annotation:
    numbers, crowd, area = check_box(where, annotation.get("bbox")), annotation.get("iscrowd", 0), annotation.get("area")
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise ValueError(f"{where} has iscrowd {brief(crowd)}: write 0, or 1 for a crowd")
    entry = {key: annotation[key] for key in ("id", "image_id", "category_id")} | {"bbox": list(numbers), "iscrowd": int(crowd)}
    if masks:
        entry["segmentation"] = check_mask(where, annotation.get("segmentation"), image["height"], image["width"])
        check_unit(where, entry["segmentation"], numbers)
    box = _within(numbers, image)
    reason = _reason(entry, box, masks)
    if reason in (None, _CROWDS):
        entry["area"] = _area(where, entry, image) if area is None else check_area(where, area)
    return _Annotation(entry, box, reason)


def _area(where: str, entry: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    """Return the area of the mask in pixels, or of the box where there is none."""
    if entry.get("segmentation"):
        return float(rle.area(encode(entry["segmentation"], image["height"], image["width"])))
    return check_area(where, entry["bbox"][2] * entry["bbox"][3])


def _within(numbers: Sequence[float], image: Mapping[str, Any]) -> Box:
    """Return left, top, right and bottom of what an image holds of a box."""
    left, top, width, height = numbers
    right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
    return max(left, 0.0), max(top, 0.0), float(right), float(bottom)


def _reason(entry: Mapping[str, Any], box: Box, masks: bool) -> str | None:
    """Return why an object is not learned from, if so."""
    if min(box[2] - box[0], box[3] - box[1]) < _LEAST:
        return "boxes without area in their image"
    if masks and not entry["segmentation"]:
        return "masks without area"
    return _CROWDS if entry["iscrowd"] else None
