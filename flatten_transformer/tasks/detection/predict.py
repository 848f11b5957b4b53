"""What a trained detector finds in image files: as values, as COCO's JSON, and as pictures."""

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
from flatten_transformer.tasks.per_image import check_complete, count_images, run_on_files
from flatten_transformer.utils.atomic_file import check_outputs, free_part, write_atomically, write_png
from flatten_transformer.utils.terminal import say

_SAVE_EVERY_S = 5.0


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
    model: nn.Module,
    info: ModelInfo,
    files: Sequence[Path],
    output: Path = Path("predictions"),
    threshold: float = 0.5,
    on_bad_image: OnBadImage = "skip",
    inputs: Sequence[Path] = (),
) -> None:
    """Write what a detector finds into a folder: ``detections.json``, and a picture ``<stem>.png`` of each image.

    The JSON is a data set in COCO's format: the images by their paths, the classes with the ids of the data that were
    learned from, and an annotation with a ``score`` for each detection. Its annotations are what COCO's tools take as results.
    It is written every few seconds, whole each time; where there is an older one, into ``detections.json.part`` until all is
    done.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        files: Image files.
        output: The folder; it is made if need be.
        threshold: The lowest score, in 0 … 1.
        on_bad_image: ``"skip"`` goes on without an image that cannot be used; ``"raise"`` ends there.
        inputs: Further files that must stay as they are.

    Raises:
        FileNotFoundError: If a file is missing.
        UnfinishedError: At the end, if images were skipped.
        ValueError: If no image can be used, ``threshold`` is out of range, or something would be written over a file that is
            read.
    """
    _check(threshold)
    pictures = overlay_paths(files, output)
    check_outputs([output / "detections.json", *pictures], [*files, *inputs])
    findings = _Findings(output / "detections.json", info)

    def look(file: Path) -> tuple[Image.Image, dict[str, Tensor]]:
        image = read_image(file)
        return image, _find(model, info, image, threshold)

    def keep(number: int, seen: tuple[Image.Image, dict[str, Tensor]]) -> None:
        image, found = seen
        write_png(pictures[number], draw_detections(image, found, info.class_names, threshold))
        findings.add(number + 1, files[number], image, found)

    with findings:
        skipped = run_on_files(files, look, keep, on_bad_image)
    check_complete(skipped, len(files))


class _Findings:
    """What was found, as COCO's JSON in a file that is whole at any time.

    Args:
        path: Of the file; an older one is kept until all is done.
        info: Names of classes, and their ids if the data had some.
    """

    def __init__(self, path: Path, info: ModelInfo) -> None:
        self.path = path
        self.place = free_part(path) if os.path.lexists(path) else path
        self._ids = info.category_ids or range(1, len(info.class_names) + 1)
        self._categories = [{"id": number, "name": name} for number, name in zip(self._ids, info.class_names, strict=True)]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._due_s = 0.0

    def add(self, number: int, file: Path, image: Image.Image, found: dict[str, Tensor]) -> None:
        """Take the detections of an image, and write all if it is time; writing takes a twentieth of the time at most."""
        self._images.append({"id": number, "file_name": str(file), "width": image.width, "height": image.height})
        for result in coco_results(number, found, self._ids):
            area = result["bbox"][2] * result["bbox"][3]
            self._annotations.append({"id": len(self._annotations) + 1, **result, "area": area, "iscrowd": 0})
        if (start_s := time.monotonic()) >= self._due_s:
            self._write()
            end_s = time.monotonic()
            self._due_s = end_s + max(_SAVE_EVERY_S, 20 * (end_s - start_s))

    def _write(self) -> None:
        content = {"images": self._images, "categories": self._categories, "annotations": self._annotations}
        write_atomically(self.place, json.dumps(content).encode())

    def __enter__(self) -> _Findings:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write the rest and say where it is."""
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
def _find(model: nn.Module, info: ModelInfo, image: Image.Image, threshold: float) -> dict[str, Tensor]:
    with forward_errors(info):
        found: dict[str, Tensor] = model([info.preprocessing(image)])[0]
    sure = found["scores"] >= threshold
    return {name: value[sure] for name, value in found.items()}
