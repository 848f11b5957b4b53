"""A tiny data set in COCO's format: what a category id, a crowd or a mask looks like there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]  # holes, not in order
SIZES = ((64, 48), (48, 64), (80, 60), (64, 48))  # width, height


def annotation(number: int, image: int, category: int, box: tuple[float, float, float, float], **more: Any) -> dict[str, Any]:
    """Return an entry of a file; its mask is the box."""
    left, top, width, height = box
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": width * height}
    return {**entry, "segmentation": [corners], "iscrowd": 0, **more}


def objects() -> list[dict[str, Any]]:
    """Return three objects, a crowd and a run-length mask on three images; the fourth holds nothing."""
    counts = [48 * 10, *([20, 28] * 14), 20, 28 + 48 * 39]  # columns 10 … 24, rows 0 … 19 of 64 × 48
    crowd = {"iscrowd": 1, "segmentation": {"size": [60, 80], "counts": [60 * 40, 60 * 20, 60 * 20]}}
    return [
        annotation(1, 100, 3, (4, 6, 20, 24)),
        annotation(2, 100, 90, (10, 0, 15, 20), segmentation={"size": [48, 64], "counts": counts}),
        annotation(3, 101, 17, (8, 8, 30, 40)),
        annotation(4, 102, 3, (10, 10, 40, 30)),
        annotation(5, 102, 3, (40, 0, 20, 60), **crowd),
    ]


def content(**changes: Any) -> dict[str, Any]:
    """Return what an annotation file holds."""
    images = [{"id": 100 + n, "file_name": f"{n}.png", "width": size[0], "height": size[1]} for n, size in enumerate(SIZES)]
    return {"images": images, "annotations": objects(), "categories": CATEGORIES, **changes}


def write_coco(root: Path, **changes: Any) -> Path:
    """Write train and val of the same images, laid out as COCO is, and return their folder."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        for number, (width, height) in enumerate(SIZES):
            pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{split}2017" / f"{number}.png")
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content(**changes)))
    return root
