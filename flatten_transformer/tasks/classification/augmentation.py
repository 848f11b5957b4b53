"""Training augmentation: timm's random crops, flips, policies, colour jitter and random erasing."""

# C channels.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from timm.data import create_transform

from flatten_transformer.data.preprocessing import Transform
from flatten_transformer.data.source import check_probabilities
from flatten_transformer.tasks.classification.preprocessing import Preprocessing

EraseMode = Literal["const", "rand", "pixel"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, to reduce overfitting.

    Args:
        scale: Range of the share of the area that a random crop keeps; it is resized bicubically.
        ratio: Range of the aspect ratio (width / height) of that crop.
        hflip: Probability of a horizontal flip; keep 0 for digits.
        auto_augment: timm policy for further augmentation, such as ``"rand-m9-mstd0.5-inc1"``; None for none.
        color_jitter: Relative range of brightness, contrast and saturation. A policy replaces it, in timm and thus in the
            paper's code too: it acts if ``auto_augment`` is None or ``"3a"``.
        re_prob: Probability of erasing a random rectangle.
        re_mode: Fill of that rectangle: ``"const"``, the mean; ``"rand"``, a random colour; ``"pixel"``, noise.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from PIL import Image
        >>> paper = Augmentation((0.08, 1.0), (3 / 4, 4 / 3), 0.5, "rand-m9-mstd0.5-inc1", 0.4, 0.25, "pixel")
        >>> transform = paper.transform(Preprocessing(224, 3, (0.5,) * 3, (0.5,) * 3))
        >>> transform(Image.new("RGB", (300, 200))).shape
        torch.Size([3, 224, 224])
    """

    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.8, 1.25)
    hflip: float = 0.0
    auto_augment: str | None = None
    color_jitter: float = 0.0
    re_prob: float = 0.0
    re_mode: EraseMode = "const"

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must hold two positive numbers, the smaller first, got {[low, high]}")
        check_probabilities(hflip=self.hflip, re_prob=self.re_prob)
        if self.color_jitter < 0:
            raise ValueError(f"color_jitter must be at least 0, got {self.color_jitter}")
        if self.re_mode not in get_args(EraseMode):
            raise ValueError(f"re_mode must be one of {', '.join(get_args(EraseMode))}, got {self.re_mode!r}")

    def transform(self, preprocessing: Preprocessing) -> Transform:
        """Return timm's training transform, from a PIL image in the right mode to ``[C, img_size, img_size]``.

        Args:
            preprocessing: Size, channels, mean and standard deviation.

        Raises:
            ValueError: If timm does not know the policy.
        """
        size = preprocessing.img_size
        try:
            transform: Transform = create_transform(
                (preprocessing.in_chans, size, size),
                is_training=True,
                interpolation="bicubic",
                mean=tuple(preprocessing.mean),
                std=tuple(preprocessing.std),
                scale=self.scale,
                ratio=self.ratio,
                hflip=self.hflip,
                auto_augment=self.auto_augment,
                color_jitter=self.color_jitter or None,
                re_prob=self.re_prob,
                re_mode=self.re_mode,
            )
        except (AssertionError, KeyError) as error:  # timm's errors for unknown policies
            raise ValueError(
                f"timm knows no augmentation {self.auto_augment!r} ({error}): try rand-m5-n2, or null for none"
            ) from None
        return transform
