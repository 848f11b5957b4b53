"""Draw ground truth and detections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from faster_coco_eval import mask as rle
from PIL import Image
from torch import Tensor

from flatten_transformer.data.coco import CocoImage
from flatten_transformer.data.coco_masks import encode
from flatten_transformer.tasks.overlays import draw_objects, enlarge, readable_scale


def draw_truth(image: Image.Image, entry: CocoImage, class_names: Sequence[str], scale: int | None = None) -> Image.Image:
    """Return an image with its annotated objects.

    Args:
        image: Image as stored in its file.
        entry: Its annotations; crowds are left out.
        class_names: K names.
        scale: Enlargement of the picture; None for what makes captions readable.
    """
    labels = [each.label for each in entry.objects]
    boxes = torch.tensor([each.box for each in entry.objects], dtype=torch.float32).reshape(-1, 4)
    masks = None
    if entry.objects and all(each.segmentation for each in entry.objects):
        decoded = [rle.decode(encode(each.segmentation, entry.height, entry.width)) for each in entry.objects]
        masks = torch.from_numpy(np.stack(decoded)).bool()
    return _draw(image, boxes, labels, [class_names[label] for label in labels], masks, scale)


def draw_detections(
    image: Image.Image, detections: dict[str, Tensor], class_names: Sequence[str], threshold: float, scale: int | None = None
) -> Image.Image:
    """Return an image with its detected objects.

    Args:
        image: Image as stored in its file.
        detections: Detector output.
        class_names: K names.
        threshold: Minimum score.
        scale: Enlargement of the picture; None for what makes captions readable.
    """
    confident = (detections["scores"] >= threshold).cpu()
    kept = {name: value.cpu()[confident] for name, value in detections.items()}
    labels = kept["labels"].tolist()
    captions = [f"{class_names[label]}: {score:.0%}" for label, score in zip(labels, kept["scores"].tolist(), strict=True)]
    masks = kept["masks"][:, 0] > 0.5 if "masks" in kept else None
    return _draw(image, kept["boxes"], labels, captions, masks, scale)


def _draw(
    image: Image.Image, boxes: Tensor, labels: list[int], captions: list[str], masks: Tensor | None, scale: int | None
) -> Image.Image:
    scale = readable_scale(image) if scale is None else scale
    masks = None if masks is None else masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return draw_objects(enlarge(image, scale), scale * boxes, labels, captions, masks)
