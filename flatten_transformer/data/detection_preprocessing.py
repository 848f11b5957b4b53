"""From an image file to what a detector sees of it; training, evaluation and prediction share it."""

# C channels.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from flatten_transformer.data.preprocessing import check_channels, to_mode


@dataclass(frozen=True)
class DetectionPreprocessing:
    """What is done to an image before a detector sees it; the detector resizes it itself, and its boxes back.

    Args:
        in_chans: 1 for grey, 3 for colour.
        mean: Subtracted from the values in 0 … 1; one number a channel.
        std: Divides the difference; one number a channel.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> DetectionPreprocessing(1, (0.5,), (0.5,))(Image.new("RGBA", (8, 12))).shape
        torch.Size([1, 12, 8])
    """

    in_chans: int
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        check_channels(self)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return ``[C, height, width]``, float32, of an image of any mode."""
        return self.normalise(F.pil_to_tensor(to_mode(image, self.in_chans)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return values around 0, float32, of pixels in 0 … 255, ``[C, height, width]`` both."""
        values: Tensor = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(self.mean), list(self.std))
        return values
