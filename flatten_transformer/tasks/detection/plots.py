"""What was found beside what there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from faster_coco_eval import mask as rle
from PIL import Image
from torch import Tensor

from flatten_transformer.data.coco import CocoImage
from flatten_transformer.data.coco_masks import encode
from flatten_transformer.tasks.overlays import draw_objects


def draw_truth(image: Image.Image, entry: CocoImage, class_names: Sequence[str], scale: int = 1) -> Image.Image:
    """Return an image with the objects that its annotations name.

    Args:
        image: As it is in its file.
        entry: What the annotation file says of it; crowds are left out.
        class_names: K names.
        scale: How many times larger the picture is than the image.
    """
    labels = [each.label for each in entry.objects]
    boxes = torch.tensor([each.box for each in entry.objects], dtype=torch.float32).reshape(-1, 4)
    masks = None
    if entry.objects and all(each.segmentation for each in entry.objects):
        decoded = [rle.decode(encode(each.segmentation, entry.height, entry.width)) for each in entry.objects]
        masks = torch.from_numpy(np.stack(decoded)).bool()
    return _draw(image, boxes, labels, [class_names[label] for label in labels], masks, scale)


def draw_detections(
    image: Image.Image, found: dict[str, Tensor], class_names: Sequence[str], threshold: float, scale: int = 1
) -> Image.Image:
    """Return an image with the objects that a detector found.

    Args:
        image: As it is in its file.
        found: What the detector returned for it.
        class_names: K names.
        threshold: The lowest score of what is drawn.
        scale: How many times larger the picture is than the image.
    """
    sure = (found["scores"] >= threshold).cpu()
    kept = {name: value.cpu()[sure] for name, value in found.items()}
    labels = kept["labels"].tolist()
    captions = [f"{class_names[label]} {score:.0%}" for label, score in zip(labels, kept["scores"].tolist(), strict=True)]
    masks = kept["masks"][:, 0] > 0.5 if "masks" in kept else None
    return _draw(image, kept["boxes"], labels, captions, masks, scale)


def _draw(
    image: Image.Image, boxes: Tensor, labels: list[int], captions: list[str], masks: Tensor | None, scale: int
) -> Image.Image:
    if scale > 1:
        image = image.convert("RGB").resize((scale * image.width, scale * image.height), Image.Resampling.BICUBIC)
        masks = None if masks is None else masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return draw_objects(image, scale * boxes, labels, captions, masks)
