"""The same few images with boxes in COCO's, YOLO's and Pascal VOC's format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("cat", "dog")
SIZES = ((64, 48), (48, 64))  # width, height, in turn
Box = tuple[int, int, int, int, int]  # class, left, top, right, bottom in pixels from 0


def boxes_of(number: int) -> list[Box]:
    """Return what is on an image: a box, and on every second one another."""
    first = (number % 2, 4 + number % 7, 6, 30, 40)
    return [first, (1, 20, 10, 44, 30)] if number % 2 else [first]


def draw(path: Path, number: int) -> tuple[int, int]:
    """Draw an image, noise with bright boxes, and return its size."""
    width, height = SIZES[number % 2]
    pixels = np.random.default_rng(number).integers(0, 90, (height, width, 3), dtype=np.uint8)
    for category, left, top, right, bottom in boxes_of(number):
        pixels[top:bottom, left:right, category] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return width, height


def write_coco_export(root: Path, splits: Mapping[str, int]) -> Path:
    """Write images and one JSON file for each split, beside them; for the split "" into images/ with the file beside it."""
    for split, count in splits.items():
        folder = root / split if split else root / "images"
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for number in range(count):
            width, height = draw(folder / f"{number:02}.jpg", number)
            images.append({"id": number, "file_name": f"{number:02}.jpg", "width": width, "height": height})
            for category, left, top, right, bottom in boxes_of(number):
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
                annotations.append({**entry, "bbox": [left, top, right - left, bottom - top]})
        categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def write_yolo(root: Path, splits: Mapping[str, int]) -> Path:
    """Write images/<split>/, labels/<split>/ and data.yaml."""
    for split, count in splits.items():
        for number in range(count):
            width, height = draw(root / "images" / split / f"{number:02}.jpg", number)
            lines = [
                f"{category} {(left + right) / 2 / width} {(top + bottom) / 2 / height} "
                f"{(right - left) / width} {(bottom - top) / height}"
                for category, left, top, right, bottom in boxes_of(number)
            ]
            label = root / "labels" / split / f"{number:02}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(lines) + "\n")
    entries = "".join(f"{split}: images/{split}\n" for split in splits if split)
    (root / "data.yaml").write_text(f"path: ../datasets/mine\n{entries}nc: 2\nnames:\n  0: cat\n  1: dog\n")
    return root


def write_voc(root: Path, splits: Mapping[str, int]) -> Path:
    """Write JPEGImages/, Annotations/ and, for splits with names, ImageSets/Main/."""
    start = 0
    for split, count in splits.items():
        for number in range(count):
            name = f"{start + number:02}"
            width, height = draw(root / "JPEGImages" / f"{name}.jpg", number)
            objects = "\n".join(voc_object(NAMES[box[0]], *box[1:]) for box in boxes_of(number))
            write_voc_xml(root / "Annotations" / f"{name}.xml", objects, width, height)
        if split:
            lists = root / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("".join(f"{start + number:02}\n" for number in range(count)))
        start += count
    return root


def voc_object(name: str, left: float, top: float, right: float, bottom: float, more: str = "") -> str:
    """Return an object as Pascal VOC has it: pixels count from 1."""
    box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def write_voc_xml(path: Path, objects: str, width: int, height: int) -> None:
    """Write an annotation file; the first object is on its third line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>\n{size}\n{objects}\n</annotation>")


WRITERS: dict[str, Callable[[Path, Mapping[str, int]], Path]] = {
    "coco": write_coco_export,
    "yolo": write_yolo,
    "voc": write_voc,
}
