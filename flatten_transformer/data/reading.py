"""Decode images; raise on, or skip, unreadable ones."""

# n images, C channels.

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from flatten_transformer.data.preprocessing import Transform, to_mode

Labelled = tuple[Tensor, int, int]  # image, class, index in the source
OnBadImage = Literal["raise", "skip"]


class BadImageError(ValueError):
    """An unusable image.

    A loader process wraps the message into its traceback; only the message is kept.

    Example:
        >>> str(BadImageError("Caught BadImageError in process 0. Traceback … BadImageError: a.jpg is not an image"))
        'a.jpg is not an image'
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("BadImageError: ")[2].strip())


class NamedImages(Protocol):
    """Images with their targets, each with a name."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]: ...

    def name(self, index: int) -> str:
        """Return the name of an image for error messages."""


class Reading(Dataset[Any]):
    """Images of a source in the right mode; unusable ones raise or are skipped.

    Args:
        source: n images with their targets.
        in_chans: C, 1 for grey, 3 for colour.
        on_bad_image: ``"skip"`` substitutes the next usable image for an unusable one and marks the latter in ``skipped``,
            ``[n]``, which the loader processes share.

    Raises:
        BadImageError: On access, if an image is unusable and must not be skipped, or if none is usable.
    """

    def __init__(self, source: NamedImages, in_chans: int, on_bad_image: OnBadImage = "raise") -> None:
        self.source = source
        self.in_chans = in_chans
        self.on_bad_image = on_bad_image
        self.skipped = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def collate(self, samples: list[Any]) -> Any:
        """Return a batch of samples."""
        return default_collate(samples)

    def read(self, index: int) -> tuple[Image.Image, Any, int]:
        """Return an image, its target and its index in the source, which differs from ``index`` if that was skipped."""
        return self._read(index) if self.on_bad_image == "raise" else self._next_usable(index)

    def _read(self, index: int) -> tuple[Image.Image, Any, int]:
        try:
            image, target = self.source[index]
            return to_mode(image, self.in_chans), target, index
        except (ValueError, OSError) as error:
            name, reason = self.source.name(index), str(error)
            reason = reason if name in reason else f"{name}: {reason}"
            raise BadImageError(f"{reason}; or go on without it: --data.on_bad_image skip") from None

    def _next_usable(self, index: int) -> tuple[Image.Image, Any, int]:
        for position in (*range(index, len(self)), *range(index)):
            if self.skipped[position]:
                continue
            try:
                return self._read(position)
            except BadImageError:
                self.skipped[position] = True
        raise BadImageError(f"none of {len(self)} images can be used, nor {self.source.name(index)}: look at the files")

    def skipped_names(self) -> list[str]:
        """Return the names of the images skipped so far."""
        return [self.source.name(int(index)) for index in self.skipped.nonzero()]


class Transformed(Reading):
    """Images of a source as tensors, ``[C, size, size]``, with class and index.

    Args:
        source: n images with their classes.
        transform: Maps an image in the right mode to a tensor.
        in_chans: C, 1 for grey, 3 for colour.
        on_bad_image: As for :class:`Reading`.

    Example:
        >>> from flatten_transformer.data.digits import Digits
        >>> from torchvision.transforms.v2.functional import pil_to_tensor
        >>> digits = Transformed(Digits("test", size=16), pil_to_tensor, in_chans=3)
        >>> digits[0][0].shape
        torch.Size([3, 16, 16])
    """

    def __init__(self, source: NamedImages, transform: Transform, in_chans: int, on_bad_image: OnBadImage = "raise") -> None:
        super().__init__(source, in_chans, on_bad_image)
        self.transform = transform

    def __getitem__(self, index: int) -> Labelled:
        image, label, index = self.read(index)
        return self.transform(image), label, index
