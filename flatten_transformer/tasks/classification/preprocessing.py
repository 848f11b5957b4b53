"""Image preprocessing of a classifier, in evaluation and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from timm.data import create_transform
from torch import Tensor

from flatten_transformer.data.preprocessing import Transform, check_channels, to_mode


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise an image for a classifier, outside training.

    Args:
        img_size: Side of the centre crop in pixels, after bicubic resizing.
        in_chans: 1 for grey, 3 for colour.
        mean: Subtracted from values in 0 … 1; one number per channel.
        std: Divides the difference; one number per channel.
        crop_pct: Share of the shorter side kept by the crop; 0.9 for 224 resizes it to 248.

    Raises:
        ValueError: If a number is out of range or ``mean`` and ``std`` do not fit ``in_chans``.

    Example:
        >>> Preprocessing(img_size=32, in_chans=1, mean=(0.5,), std=(0.5,))(Image.new("RGBA", (8, 12))).shape
        torch.Size([1, 32, 32])
    """

    img_size: int
    in_chans: int
    mean: Sequence[float]
    std: Sequence[float]
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise ValueError(f"img_size must be at least 1, got {self.img_size}")
        check_channels(self)
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must lie in 0 … 1, above 0, got {self.crop_pct}")

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert an image of any mode and size to ``[in_chans, img_size, img_size]``, float32."""
        return self.transform()(to_mode(image, self.in_chans))

    def transform(self) -> Transform:
        """Return timm's evaluation transform, from a PIL image in the right mode to a tensor."""
        transform: Transform = create_transform(
            (self.in_chans, self.img_size, self.img_size),
            interpolation="bicubic",
            mean=tuple(self.mean),
            std=tuple(self.std),
            crop_pct=self.crop_pct,
        )
        return transform
