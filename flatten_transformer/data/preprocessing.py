"""From an image file to the tensor a model wants; training, evaluation and prediction share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor

Transform = Callable[[Image.Image], Tensor]
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a model sees it, outside training.

    Args:
        img_size: Side in pixels of what the model sees, the centre of the image, bicubically resized.
        in_chans: 1 for grey, 3 for colour.
        mean: Subtracted from the values in 0 … 1; one number a channel.
        std: Divides the difference; one number a channel.
        crop_pct: Share of the image's shorter side that is kept; 0.9 for 224 resizes it to 248.

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
        """Return ``[in_chans, img_size, img_size]``, float32, of an image of any mode and size."""
        return self.transform()(to_mode(image, self.in_chans))

    def transform(self) -> Transform:
        """Return timm's evaluation transform, from a PIL image of the right mode to a tensor."""
        transform: Transform = create_transform(
            (self.in_chans, self.img_size, self.img_size),
            interpolation="bicubic",
            mean=tuple(self.mean),
            std=tuple(self.std),
            crop_pct=self.crop_pct,
        )
        return transform


def check_channels(preprocessing: Any) -> None:
    """Check ``in_chans``, ``mean`` and ``std`` of a frozen dataclass, and make the last two tuples.

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
        object.__setattr__(preprocessing, name, values)  # equal, whether they come from YAML, JSON or Python
    if min(preprocessing.std) <= 0:
        raise ValueError(f"std must be positive, got {list(preprocessing.std)}")


def read_image(path: Path) -> Image.Image:
    """Return the image in a file, upright and fully read; of an animation the first frame.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image, or a damaged one, or holds floating-point values.
    """
    try:
        return decode_image(path, str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}: check the path") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: give it the images themselves, such as {path}/*.png") from None


def decode_image(file: Path | BinaryIO, name: str) -> Image.Image:
    """Return the image in a file or in bytes, upright and fully read; of an animation the first frame.

    Args:
        file: A path, or bytes such as ``io.BytesIO``.
        name: What an error calls it.

    Raises:
        ValueError: If it is not an image, or a damaged one, or holds floating-point values.
    """
    try:
        with Image.open(file) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (FileNotFoundError, IsADirectoryError):
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that Pillow can read: give it a PNG, JPEG, WebP or TIFF") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises SyntaxError for broken PNG
        raise ValueError(f"{name} cannot be read as an image ({error}): save it anew or leave it out") from None
    if upright.mode == "F":
        raise ValueError(f"{name} is a floating-point image, which has no fixed range: save it with 8 or 16 bits a channel")
    return upright


def to_mode(image: Image.Image, in_chans: int) -> Image.Image:
    """Return the image in grey (1) or RGB (3): 16 bits scaled to 8, transparent parts on white, as viewers show them.

    Raises:
        ValueError: If the image holds floating-point values: they have no fixed range.

    Example:
        >>> to_mode(Image.new("I;16", (1, 1), 65535), in_chans=3).getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode == "F":
        raise ValueError("a floating-point image has no fixed range: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16 bits; Pillow also holds them in 32
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(_MODES[in_chans])
