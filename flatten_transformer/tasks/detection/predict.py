"""Detect objects in image files; return them, or write COCO JSON and overlays."""

# n detections of an image.

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.reading import OnBadImage
from flatten_transformer.tasks.detection.metrics import coco_results
from flatten_transformer.tasks.detection.plots import draw_detections
from flatten_transformer.tasks.model_file import ModelInfo, forward_errors
from flatten_transformer.tasks.overlays import overlay_paths
from flatten_transformer.tasks.per_image import check_complete, count_images, run_on_files, say_it_begins_anew
from flatten_transformer.utils.atomic_file import check_outputs, free_part, write_atomically, write_png
from flatten_transformer.utils.terminal import say

_SAVE_EVERY_S = 5.0


class Detection(NamedTuple):
    """A detected object."""

    class_name: str
    score: float  # 0 … 1
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image
    mask: Tensor | None  # [height, width], True inside; None from box detectors


def detect(
    model: nn.Module, info: ModelInfo, images: Sequence[Path | Image.Image], threshold: float = 0.5
) -> list[list[Detection]]:
    """Return the detections of each image, in descending order of score.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        images: Image files or open images.
        threshold: Minimum score in 0 … 1.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image, or ``threshold`` is out of range.
    """
    _check(threshold)
    detections = []
    for image in images:
        raw = _run(model, info, image if isinstance(image, Image.Image) else read_image(image), threshold)
        masks = raw["masks"][:, 0] > 0.5 if "masks" in raw else [None] * len(raw["boxes"])
        values = zip(raw["labels"].tolist(), raw["scores"].tolist(), raw["boxes"].tolist(), masks, strict=True)
        detections.append([Detection(info.class_names[label], score, tuple(box), mask) for label, score, box, mask in values])
    return detections


def predict_files(
    model: nn.Module,
    info: ModelInfo,
    files: Sequence[Path],
    output: Path = Path("predictions"),
    threshold: float = 0.5,
    on_bad_image: OnBadImage = "skip",
    inputs: Sequence[Path] = (),
) -> None:
    """Write detections into a folder: ``detections.json``, and an overlay ``<stem>.png`` of each image.

    The JSON is a data set in COCO's format: images by path, classes with the category ids of the training data, and one
    annotation with a ``score`` per detection, as COCO's tools accept for results. It is rewritten atomically every few
    seconds; if an older one exists, as ``detections.json.part`` until the run is complete.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        files: Image files.
        output: Output folder; created if missing.
        threshold: Minimum score in 0 … 1.
        on_bad_image: ``"skip"`` continues without an unusable image; ``"raise"`` stops there.
        inputs: Further files that must not be overwritten.

    Raises:
        FileNotFoundError: If a file is missing.
        UnfinishedError: At the end, if images were skipped.
        ValueError: If no image is usable, ``threshold`` is out of range, or an output would overwrite an input.
    """
    _check(threshold)
    pictures = overlay_paths(files, output)
    check_outputs([output / "detections.json", *pictures], [*files, *inputs])
    say_it_begins_anew(output / "detections.json")
    json_file = _DetectionsFile(output / "detections.json", info)

    def predict(file: Path) -> tuple[Image.Image, dict[str, Tensor]]:
        image = read_image(file)
        return image, _run(model, info, image, threshold)

    def handle(number: int, result: tuple[Image.Image, dict[str, Tensor]]) -> None:
        image, detections = result
        write_png(pictures[number], draw_detections(image, detections, info.class_names, threshold))
        json_file.add(number + 1, files[number], image, detections)

    with json_file:
        skipped = run_on_files(files, predict, handle, on_bad_image)
    check_complete(skipped, len(files))


class _DetectionsFile:
    """Detections as COCO JSON, in a file that is complete at any time.

    Args:
        path: Output file; an older one is kept until the end.
        info: Class names, and category ids if the data had some.
    """

    def __init__(self, path: Path, info: ModelInfo) -> None:
        self.path = path
        self.place = free_part(path) if os.path.lexists(path) else path
        self._ids = info.category_ids or range(1, len(info.class_names) + 1)
        self._categories = [{"id": number, "name": name} for number, name in zip(self._ids, info.class_names, strict=True)]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._due_s = 0.0

    def add(self, number: int, file: Path, image: Image.Image, detections: dict[str, Tensor]) -> None:
        """Add the detections of an image; write the file if due, at most a twentieth of the time."""
        self._images.append({"id": number, "file_name": str(file), "width": image.width, "height": image.height})
        for result in coco_results(number, detections, self._ids):
            area = result["bbox"][2] * result["bbox"][3]
            self._annotations.append({"id": len(self._annotations) + 1, **result, "area": area, "iscrowd": 0})
        if (start_s := time.monotonic()) >= self._due_s:
            self._write()
            end_s = time.monotonic()
            self._due_s = end_s + max(_SAVE_EVERY_S, 20 * (end_s - start_s))

    def _write(self) -> None:
        content = {"images": self._images, "categories": self._categories, "annotations": self._annotations}
        write_atomically(self.place, json.dumps(content).encode())

    def __enter__(self) -> _DetectionsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write the rest and print where it is."""
        if not self._images:
            return
        part = self.place
        if kind is None:
            self.place = self.path
        self._write()
        if self.place != part:
            part.unlink(missing_ok=True)
        count = count_images(len(self._images))
        kept = "" if self.place == self.path else f", its JSON in {self.place}"
        say(f"What was found on {count} is in {self.path.parent}{kept}")


def _check(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0 … 1, got {threshold}")


@torch.inference_mode()
def _run(model: nn.Module, info: ModelInfo, image: Image.Image, threshold: float) -> dict[str, Tensor]:
    with forward_errors(info):
        detections: dict[str, Tensor] = model([info.preprocessing(image)])[0]
    confident = detections["scores"] >= threshold
    return {name: value[confident] for name, value in detections.items()}
