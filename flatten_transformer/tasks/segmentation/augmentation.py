"""Training augmentation of images and masks: resize, crop, flip and colour jitter."""

# C channels.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from flatten_transformer.data.mask_numbers import IGNORED
from flatten_transformer.data.source import check_probabilities
from flatten_transformer.tasks.segmentation.preprocessing import SegmentationPreprocessing

_CROPS = 10  # attempts to meet ``max_share``
Pair = tuple[tv_tensors.Image, tv_tensors.Mask]


class Augmentation:
    """Random resize, crop, flip and colour jitter, as in mmsegmentation's baselines.

    Args:
        preprocessing: Size before the random resize, and normalisation.
        crop_size: Side of the crop in pixels; smaller images are padded with the mean and IGNORED.
        scale: Range of the random resize factor.
        max_share: Maximum share of one class in a crop; given up after ten attempts.
        hflip: Probability of a horizontal flip.
        distortion: Jitter brightness, contrast, saturation and hue, each with probability one half.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from PIL import Image
        >>> augment = Augmentation(SegmentationPreprocessing(3, (0.5,) * 3, (0.2,) * 3), 32, (0.5, 2.0), 0.75, 0.5, True)
        >>> image, mask = augment(Image.new("RGB", (60, 40)), tv_tensors.Mask(torch.zeros(40, 60, dtype=torch.long)))
        >>> image.shape, mask.shape
        (torch.Size([3, 32, 32]), torch.Size([32, 32]))
    """

    def __init__(
        self,
        preprocessing: SegmentationPreprocessing,
        crop_size: int,
        scale: tuple[float, float],
        max_share: float,
        hflip: float,
        distortion: bool,
    ) -> None:
        if crop_size < 32:
            raise ValueError(f"crop_size must be at least 32 pixels, got {crop_size}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must hold two positive numbers, the smaller first, got {list(scale)}")
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share must lie in 0 … 1, above 0, got {max_share}")
        check_probabilities(hflip=hflip)
        self.preprocessing = preprocessing
        self.scale = scale
        self.max_share = max_share
        fill = {tv_tensors.Image: [round(255 * mean) for mean in preprocessing.mean], tv_tensors.Mask: IGNORED}
        self.crop = v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill)
        # as in mmsegmentation: 32 of 255, 0.5, 0.5, and a hue of 18 in 180
        amounts = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.1} if distortion else {}
        jitters = [v2.RandomApply([v2.ColorJitter(**{name: amount})], p=0.5) for name, amount in amounts.items()]
        self.after = v2.Compose([v2.RandomHorizontalFlip(hflip), *jitters])

    def __call__(self, image: Any, mask: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """Return a crop, ``[C, crop_size, crop_size]``, float32, and its mask, ``[crop_size, crop_size]``.

        Args:
            image: PIL image in the right mode.
            mask: ``[height, width]``, int64.
        """
        pixels = tv_tensors.Image(F.pil_to_tensor(image))
        pixels, mask = self.after(*self._crop(*self._resize(pixels, mask)))
        return self.preprocessing.normalise(pixels).as_subclass(Tensor), mask.as_subclass(Tensor)

    def _resize(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> Pair:
        factor = float(torch.empty(()).uniform_(*self.scale))
        height, width = self.preprocessing.size(*image.shape[1:])
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        return F.resize(image, size), F.resize(mask, size)

    def _crop(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> Pair:
        for _ in range(_CROPS if self.max_share < 1 else 1):
            cropped: Pair = self.crop(image, mask)
            counts = torch.bincount(cropped[1][cropped[1] != IGNORED])
            if (counts > 0).sum() > 1 and counts.max() <= self.max_share * counts.sum():
                break
        return cropped
