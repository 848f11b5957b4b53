"""COCO's annotation files: read, checked, and packed so that many processes can share them."""

# n objects of an image.

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import mask as rle

_LEAST = 0.01  # pixels: torchvision refuses boxes without a side, and float32 can lose a shorter one
_WANTED = 'a COCO annotation file is a JSON object with the lists "images", "annotations" and "categories"'


class CocoObject(NamedTuple):
    """One object of an image."""

    annotation_id: int
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels, within the image
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
        truth: The file's content, for the evaluation: crowds included, every annotation with its area.
        left_out: How many annotations are not learned from, by the reason.
    """

    path: Path
    class_names: list[str]
    category_ids: list[int]
    images: Sequence[CocoImage]
    truth: dict[str, Any]
    left_out: Counter[str] = field(default_factory=Counter)


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

    Boxes are cut to their image. Of no use for learning, and counted, are crowds, boxes without area, and, where masks
    are wanted, objects of which no polygon has three corners.

    Args:
        path: A JSON file in COCO's format.
        masks: Every object must have a mask.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, or an entry is not as it must be; the message holds its id.

    Example:
        >>> path = getfixture("tmp_path") / "boxes.json"
        >>> image = {"id": 7, "file_name": "a.jpg", "height": 4, "width": 6}
        >>> box = {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 1, 9, 2], "iscrowd": 0}
        >>> _ = path.write_text(json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 90, "name": "cat"}]}))
        >>> read_coco(path, masks=False).images[0].objects
        [CocoObject(annotation_id=1, box=(1.0, 1.0, 6.0, 3.0), label=0, segmentation=None)]
    """
    truth = _load(path)
    names = _categories(path, truth["categories"])
    labels = {category: label for label, category in enumerate(names)}
    images = _images(path, truth["images"])
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    left_out: Counter[str] = Counter()
    for annotation in _unique(path, "annotation", truth["annotations"]):
        image = images.get(annotation.get("image_id", -1))
        where = f"{path}: annotation {annotation['id']}"
        if image is None:
            raise ValueError(f"{where} is of image {annotation.get('image_id')}, which the file does not list")
        if annotation.get("category_id") not in labels:
            raise ValueError(f"{where} has the unknown category_id {annotation.get('category_id')}: list it in categories")
        box, reason = _checked(where, annotation, image, masks)
        if reason:
            left_out[reason] += 1
        else:
            label, segmentation = labels[annotation["category_id"]], annotation["segmentation"] if masks else None
            objects[image["id"]].append(CocoObject(annotation["id"], box, label, segmentation))
    packed = [CocoImage(key, im["file_name"], im["height"], im["width"], objects[key]) for key, im in images.items()]
    return CocoFile(path, list(names.values()), list(names), Packed(packed), truth, left_out)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}: check data.root, or name the file itself")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): {_WANTED}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path} has no list {key!r}: {_WANTED}")
    if not (content["images"] and content["categories"]):
        raise ValueError(f"{path} lists no {'categories' if content['images'] else 'images'}: there is nothing to learn")
    loaded: dict[str, Any] = content
    return loaded


def _unique(path: Path, kind: str, entries: Sequence[Any]) -> Sequence[dict[str, Any]]:
    """Return the entries, each with an id of its own."""
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        identity = entry.get("id") if isinstance(entry, dict) else None
        if type(identity) is not int:
            raise ValueError(f"{path}: {kind} number {number} has no whole number as its id")
        if identity in seen:
            raise ValueError(f"{path}: there are two of {kind} {identity}")
        seen.add(identity)
    return entries


def _categories(path: Path, entries: Sequence[Any]) -> dict[int, str]:
    """Return the names of the classes by their ids, in the order of the ids."""
    for entry in _unique(path, "category", entries):
        if not isinstance(entry.get("name"), str):
            raise ValueError(f"{path}: category {entry['id']} has no name")
    return {entry["id"]: entry["name"] for entry in sorted(entries, key=lambda entry: entry["id"])}


def _images(path: Path, entries: Sequence[Any]) -> dict[int, dict[str, Any]]:
    for entry in _unique(path, "image", entries):
        if not isinstance(entry.get("file_name"), str):
            raise ValueError(f"{path}: image {entry['id']} has no file_name")
        sides = [entry.get(side) for side in ("height", "width")]
        if not all(type(side) is int and side > 0 for side in sides):
            raise ValueError(f"{path}: image {entry['id']} ({entry['file_name']}) has no height and width in pixels, got {sides}")
    return {entry["id"]: entry for entry in entries}


def _checked(
    where: str, annotation: dict[str, Any], image: Mapping[str, Any], masks: bool
) -> tuple[tuple[float, float, float, float], str | None]:
    """Return the box within the image, and why the object is not learned from, if so; complete what the evaluation reads."""
    numbers = annotation.get("bbox")
    if not (isinstance(numbers, list) and len(numbers) == 4 and all(_is_number(number) for number in numbers)):
        raise ValueError(f"{where} has no bbox of four numbers (left, top, width, height), got {numbers}")
    left, top, width, height = map(float, numbers)
    right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
    box = max(left, 0.0), max(top, 0.0), float(right), float(bottom)
    segmentation, size = annotation.get("segmentation"), (image["height"], image["width"])
    if masks or segmentation:
        segmentation = _segmentation(where, segmentation, image, masks)
        # an empty mask for the evaluation, which cannot read one of no polygons
        annotation["segmentation"] = segmentation or encode({"counts": [size[0] * size[1]]}, *size)
    annotation.setdefault("iscrowd", 0)
    if not _is_number(annotation.get("area")):
        annotation["area"] = float(rle.area(encode(segmentation, *size))) if masks and segmentation else width * height
    if annotation["iscrowd"]:
        return box, "crowds"
    if min(box[2] - box[0], box[3] - box[1]) < _LEAST:
        return box, "boxes without area in their image"
    return box, "masks without area" if masks and not segmentation else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def _holds_numbers(polygon: list[Any]) -> bool:
    try:
        return math.isfinite(sum(polygon))  # quick: there are tens of millions
    except TypeError:
        return False


def _segmentation(where: str, segmentation: Any, image: Mapping[str, Any], masks: bool) -> Any:
    """Return polygons with three corners or more, or a run-length encoding of the image's size."""
    if isinstance(segmentation, list) and all(isinstance(polygon, list) for polygon in segmentation):
        if not all(map(_holds_numbers, segmentation)):
            raise ValueError(f"{where} has a polygon that holds something besides numbers")
        return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    size = [image["height"], image["width"]]
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), (list, str)):
        if segmentation.get("size") != size:
            raise ValueError(
                f"{where} has a run-length mask of {segmentation.get('size')}, but its image is {size} (height, width)"
            )
        return segmentation
    if masks:
        cure = "give it polygons or a run-length encoding, or learn boxes alone: --data.masks false"
        raise ValueError(f"{where} has no segmentation to learn a mask from: {cure}")
    return None


def encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return the compressed run-length encoding of polygons, or of another such encoding.

    Args:
        segmentation: As in COCO's files.
        height: Of the image.
        width: Of the image.

    Raises:
        ValueError: If an encoding does not fit the image.

    Example:
        >>> encode([[0, 0, 3, 0, 3, 3, 0, 3]], height=4, width=4)
        {'size': [4, 4], 'counts': b'0310004'}
    """
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], (str, bytes)):
        return segmentation
    if isinstance(segmentation, dict):
        segmentation = {"size": [height, width], **segmentation}
    encoded = rle.frPyObjects(segmentation, height, width)
    merged: dict[str, Any] = rle.merge(encoded) if isinstance(encoded, list) else encoded
    return merged
