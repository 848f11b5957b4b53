"""What a trained detector finds in image files: as values, as COCO's JSON, and as pictures."""

# n detections of an image.

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from flatten_transformer.atomic_file import write_atomically, write_png
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.detection.average_precision import coco_results
from flatten_transformer.tasks.detection.pictures import draw_detections
from flatten_transformer.tasks.model_file import ModelInfo
from flatten_transformer.tasks.overlays import overlay_paths
from flatten_transformer.tasks.prediction import patience_bar


class Detection(NamedTuple):
    """An object that was found."""

    class_name: str
    score: float  # 0 … 1
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image
    mask: Tensor | None  # [height, width], True inside; None of a detector of boxes


def detect(
    model: nn.Module, info: ModelInfo, images: Sequence[Path | Image.Image], threshold: float = 0.5
) -> list[list[Detection]]:
    """Return what a detector finds in each image, the surest first.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        images: Image files, or images that are open already.
        threshold: The lowest score, in 0 … 1.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image, or ``threshold`` is out of range.
    """
    _check(threshold)
    found = []
    for image in images:
        raw = _find(model, info, image if isinstance(image, Image.Image) else read_image(image), threshold)
        masks = raw["masks"][:, 0] > 0.5 if "masks" in raw else [None] * len(raw["boxes"])
        values = zip(raw["labels"].tolist(), raw["scores"].tolist(), raw["boxes"].tolist(), masks, strict=True)
        found.append([Detection(info.class_names[label], score, tuple(box), mask) for label, score, box, mask in values])
    return found


def predict_files(
    model: nn.Module, info: ModelInfo, files: Sequence[Path], output: Path = Path("predictions"), threshold: float = 0.5
) -> None:
    """Write what a detector finds into a folder: ``detections.json``, and a picture ``<stem>.png`` of each image.

    The JSON is a data set in COCO's format: the images by their paths, the classes with the ids of the data that were
    learned from, and an annotation with a ``score`` for each detection. Its annotations are what COCO's tools take as results.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        files: Image files.
        output: The folder; it is made if need be.
        threshold: The lowest score, in 0 … 1.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image, ``threshold`` is out of range, or a picture would take the place of an image.
    """
    _check(threshold)
    pictures, category_ids = overlay_paths(files, output), info.category_ids or range(1, len(info.class_names) + 1)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with patience_bar(len(files)) as advance:
        for number, (file, picture) in enumerate(zip(files, pictures, strict=True), 1):
            image = read_image(file)
            found = _find(model, info, image, threshold)
            images.append({"id": number, "file_name": str(file), "width": image.width, "height": image.height})
            for result in coco_results(number, found, category_ids):
                area = result["bbox"][2] * result["bbox"][3]
                annotations.append({"id": len(annotations) + 1, **result, "area": area, "iscrowd": 0})
            write_png(picture, draw_detections(image, found, info.class_names, threshold))
            advance()
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, info.class_names, strict=True)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    write_atomically(output / "detections.json", json.dumps(content).encode())
    where = f"What was found on {len(files)} image{'s' * (len(files) != 1)} is in {escape(str(output))}"
    Console().print(where, soft_wrap=True)


def _check(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0 … 1, got {threshold}")


@torch.inference_mode()
def _find(model: nn.Module, info: ModelInfo, image: Image.Image, threshold: float) -> dict[str, Tensor]:
    found: dict[str, Tensor] = model([info.preprocessing(image)])[0]
    sure = found["scores"] >= threshold
    return {name: value[sure] for name, value in found.items()}
