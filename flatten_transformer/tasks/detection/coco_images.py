"""Images with boxes and masks, from a COCO file and its image folder."""

# n objects of an image, C channels.

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as rle
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from flatten_transformer.data.coco import CocoFile, CocoImage
from flatten_transformer.data.coco_json import brief
from flatten_transformer.data.coco_masks import encode
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.reading import OnBadImage, Reading
from flatten_transformer.data.safe_paths import check_inside, lies_under
from flatten_transformer.tasks.detection.preprocessing import DetectionPreprocessing

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target, int]  # image, target, index in the file
Augment = Callable[[tv_tensors.Image, dict[str, Any]], tuple[Tensor, dict[str, Any]]]


class CocoSource:
    """Images of an annotation file with their entries.

    Args:
        file: Annotation file.
        folder: Image folder.
        empty_images: Include images without objects.
        links: Further folders that links in ``folder`` may lead to; None for any.

    Raises:
        ValueError: If no object is left, or a file name leaves the folder; on access, if an image does not match its entry.
    """

    def __init__(self, file: CocoFile, folder: Path, *, empty_images: bool, links: Sequence[Path] | None = ()) -> None:
        self.file = file
        self.folder = folder
        self._allowed = None if links is None else (folder, *links)
        _check_objects(file)
        for entry in file.truth["images"]:
            if not lies_under(folder / entry["file_name"], folder):
                where = f"{file.path}: image {entry['id']} has the file_name {brief(entry['file_name'])}"
                raise ValueError(f"{where}, which leaves the folder of images {folder}: name it as seen from there")
        entries = range(len(file.images))
        self.indices = [index for index in entries if empty_images or file.images[index].objects]

    def __len__(self) -> int:
        return len(self.indices)

    def entry(self, index: int) -> CocoImage:
        """Return the entry of an image."""
        entry: CocoImage = self.file.images[self.indices[index]]
        return entry

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.folder / self.entry(index).file_name)

    def __getitem__(self, index: int) -> tuple[Image.Image, CocoImage]:
        entry = self.entry(index)
        check_inside(self.folder / entry.file_name, self._allowed)
        image = read_image(self.folder / entry.file_name)
        if image.size != (entry.width, entry.height):
            raise ValueError(
                f"{self.folder / entry.file_name} has {image.width} × {image.height} pixels (width × height), but "
                f"{self.file.path} says {entry.width} × {entry.height} of image {entry.image_id}: one of them is not the original"
            )
        return image, entry


def _check_objects(file: CocoFile) -> None:
    """Raise if the file holds no object."""
    if not any(image.objects for image in file.images):
        reasons = ", ".join(f"{len(names)} {reason}" for reason, names in file.left_out.items())
        raise ValueError(
            f"{file.path} holds no object (annotations: {reasons or 'none'}): there is nothing to learn or to judge by"
        )


class CocoImages(Reading):
    """Images of an annotation file as tensors, ``[C, height, width]``, with their targets.

    Args:
        source: Images and their entries.
        preprocessing: Normalisation.
        augment: Augmentation of pixels, boxes and masks, applied before; None for none.
        masks: Include masks in the targets.
        on_bad_image: As for :class:`Reading`.

    Raises:
        BadImageError: On access, as for :class:`Reading`.
    """

    source: CocoSource

    def __init__(
        self,
        source: CocoSource,
        preprocessing: DetectionPreprocessing,
        augment: Augment | None,
        *,
        masks: bool,
        on_bad_image: OnBadImage,
    ) -> None:
        super().__init__(source, preprocessing.in_chans, on_bad_image)
        self.file = source.file
        self.preprocessing = preprocessing
        self.augment = augment
        self.masks = masks

    def __getitem__(self, index: int) -> Sample:
        """Return an image, ``boxes`` ``[n, 4]``, ``labels`` ``[n]``, ``masks`` ``[n, height, width]``, and its index."""
        image, entry, index = self.read(index)
        pixels, target = tv_tensors.Image(F.pil_to_tensor(image)), self._target(entry)
        if self.augment is not None:
            pixels, target = self.augment(pixels, target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return self.preprocessing.normalise(pixels.as_subclass(Tensor)), plain, index

    def collate(self, samples: list[Sample]) -> tuple[list[Tensor], list[Target], Tensor]:
        """Return lists of images and targets, and indices ``[B]``."""
        images, targets, indices = zip(*samples, strict=True)
        return list(images), list(targets), torch.tensor(indices)

    def _target(self, entry: CocoImage) -> dict[str, Any]:
        size = (entry.height, entry.width)
        boxes = torch.tensor([each.box for each in entry.objects], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([each.label for each in entry.objects], dtype=torch.int64),
            "image_id": torch.tensor(entry.image_id),
        }
        if self.masks:
            masks = np.zeros((len(entry.objects), *size), np.uint8)
            for mask, each in zip(masks, entry.objects, strict=True):
                mask[:] = rle.decode(encode(each.segmentation, *size))
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return target
