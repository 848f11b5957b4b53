"""Image modes and channel statistics, shared by the preprocessing of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from flatten_transformer.data.image_files import DEEP, WHITE
from flatten_transformer.data.image_files import decode_image as decode_image
from flatten_transformer.data.image_files import read_image as read_image

Transform = Callable[[Image.Image], Tensor]
Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of values in 0 … 1, per channel
IMAGENET: Statistics = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
_MODES = {1: "L", 3: "RGB"}
_STRIP = 2**22  # pixels


@dataclass(frozen=True)
class Normalisation:
    """Normalise pixels for a detector or segmenter.

    Args:
        in_chans: 1 for grey, 3 for colour.
        mean: Subtracted from values in 0 … 1; one number per channel.
        std: Divides the difference; one number per channel.

    Raises:
        ValueError: If a number is out of range.
    """

    in_chans: int
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        check_channels(self)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels in 0 … 255 to float32, ``[C, height, width]`` both."""
        values: Tensor = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(self.mean), list(self.std))
        return values


def channel_statistics(
    in_chans: int, mean: Sequence[float] | None, std: Sequence[float] | None, own: Statistics = IMAGENET
) -> Statistics:
    """Return ``mean`` and ``std``, or the data set's own where None, averaged if its channels do not match.

    Args:
        in_chans: 1 for grey, 3 for colour.
        mean: One number per channel.
        std: One number per channel.
        own: Statistics of the data set.

    Example:
        >>> channel_statistics(1, None, (0.5,), own=((0.25, 0.5, 0.75), (1.0, 1.0, 1.0)))
        ((0.5,), (0.5,))
    """
    first, second = (values if len(values) == in_chans else (sum(values) / len(values),) * in_chans for values in own)
    return first if mean is None else mean, second if std is None else std


def check_channels(preprocessing: Any) -> None:
    """Check ``in_chans``, ``mean`` and ``std`` of a frozen dataclass; convert the last two to tuples.

    Raises:
        ValueError: If they are out of range or do not fit together.
    """
    chans = preprocessing.in_chans
    if chans not in _MODES:
        raise ValueError(f"in_chans must be 1 (grey) or 3 (colour), got {chans}")
    for name in ("mean", "std"):
        values = tuple(getattr(preprocessing, name))
        if len(values) != chans:
            raise ValueError(f"{name} must hold one number for each of in_chans={chans} channels, got {list(values)}")
        object.__setattr__(preprocessing, name, values)  # so that values from YAML, JSON and Python compare equal
    if min(preprocessing.std) <= 0:
        raise ValueError(f"std must be positive, got {list(preprocessing.std)}")


def to_mode(image: Image.Image, in_chans: int) -> Image.Image:
    """Convert an image to greyscale (1) or RGB (3): transparency on white, as viewers do, and 16 bits scaled to 8.

    White is 65535 or the value stated by the file: PNG's ``sBIT``, TIFF's ``MaxSampleValue`` or 12-bit TIFF, PPM's maximum.
    Cameras also store 10, 12 or 14 bits in 16; if the file does not state the depth and no value reaches 4096, the image is
    rejected: guessing per image would make brightness inconsistent.

    Raises:
        ValueError: If the white value is unknown: for floating-point values, numbers outside 0 … 65535, and 16-bit values
            that all lie below 4096.

    Example:
        >>> to_mode(Image.new("I;16", (1, 1), 65535), in_chans=3).getpixel((0, 0))
        (255, 255, 255)
    """
    white = _white(image)
    rows = max(1, _STRIP // max(1, image.width))
    if image.height <= rows:
        return _convert(image, in_chans, white)
    flat = Image.new(_MODES[in_chans], image.size)
    for top in range(0, image.height, rows):  # in strips: the intermediates take several times the memory of the image
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat.paste(_convert(strip, in_chans, white), (0, top))
    return flat


def _convert(image: Image.Image, in_chans: int, white: int) -> Image.Image:
    if image.mode.startswith("I"):
        image = _to_eight_bits(image, white)
    if image.has_transparency_data:
        layer = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(_MODES[in_chans])


def _to_eight_bits(image: Image.Image, white: int) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    scaled = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        scaled.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return scaled


def _white(image: Image.Image) -> int:
    """Return the white value of an image; raise if its range is unknown."""
    if image.mode == "F":
        raise ValueError("a floating-point image has no fixed range: save it with 8 or 16 bits a channel")
    stated, deep = image.info.get(WHITE, 0), image.info.get(DEEP, False)
    if not (deep or image.mode.startswith("I")):
        return 255
    low, high = _extrema(image)
    if low < 0 or high > 65535:
        raise ValueError(f"its values reach from {low} to {high}, which is no fixed range: save it with 8 or 16 bits a channel")
    if high < 4096 and (deep or (high > 0 and not stated)) and stated != 65535:
        raise ValueError(
            f"its 16 bits hold no value above {high}, so that it would be black, and the file does not say which is white: "
            f"save it with 8 bits, or scaled to 0 … 65535, or, if grey, with its depth (PNG: sBIT, TIFF: MaxSampleValue)"
        )
    return stated if stated and high <= stated else 65535


def _extrema(image: Image.Image) -> tuple[int, int]:
    """Return the minimum and maximum of a 16-bit image; only the upper 8 bits of colours are known."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return int(values.min()), int(values.max())
    bands = image.getextrema()[: 1 if image.mode in ("L", "LA") else 3]
    return 0, max(int(high) for _, high in bands) * 256 + 255  # type: ignore[misc]  # one pair per band
