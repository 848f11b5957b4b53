"""Labelled image sources, the interface of a data format, and the validation hold-out."""

# n images.

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

Split = Literal["train", "val", "test"]


class Source(Dataset[tuple[Image.Image, int]]):
    """Labelled images, the common form of every data set.

    A subclass sets ``labels``, the class of each of its n images, and reads images in ``__getitem__``.
    """

    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the name of an image for error messages."""
        return f"image {index}"


class Subset(Source):
    """Images of a source selected by ``indices``, in their order.

    Args:
        source: All images.
        indices: Selected indices.
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices
        self.labels = [source.labels[index] for index in indices]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[self.indices[index]]

    def name(self, index: int) -> str:
        """Return the name of the image in its source."""
        return self.source.name(self.indices[index])


class LeftOut(NamedTuple):
    """Files or entries of a data set that no split uses."""

    reason: str  # such as "not an image"
    names: Sequence[str]


class Splits(NamedTuple):
    """Class names, the images of each split, and the files left out.

    ``val`` is None if a share of ``train`` must be held out, ``test`` is None if ``val`` serves for both.
    """

    class_names: Sequence[str]
    train: Source
    val: Source | None = None
    test: Source | None = None
    left_out: Sequence[LeftOut] = ()


class Request(NamedTuple):
    """Arguments of opening a data set."""

    name: str  # such as "wds/pets"
    rest: str  # of the name, after the slash
    root: Path | None
    download: bool
    img_size: int  # pixels, for formats that resize (digits)

    @property
    def folder(self) -> Path:
        """The root; raises ValueError if there is none."""
        if self.root is None:
            raise ValueError(f"the data set {self.name!r} needs a folder: add --data.root, such as --data.root data/")
        return self.root


class ImageDefaults(NamedTuple):
    """Default image size, channels and statistics of a data set."""

    img_size: int  # pixels
    in_chans: int
    mean: Sequence[float]  # of values in 0 … 1, per channel, as std
    std: Sequence[float]


class Format(NamedTuple):
    """A storage format of labelled images, defined in one module and registered in ``by_name._MODULES``."""

    names: Sequence[str]  # shown in messages; all share one prefix
    takes_rest: bool | None  # whether names continue after a slash; None for optional
    open: Callable[[Request], Splits]
    downloads: bool = False
    defaults: Mapping[str, ImageDefaults] = {}  # by full name, where they differ from ImageNet's


def check_val_share(val_share: float) -> None:
    """Raise ValueError unless ``val_share`` lies between 0 and 1."""
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie between 0 and 1, got {val_share}")


def split_off(source: Source, share: float) -> tuple[Subset, Subset]:
    """Split off a share of each class, drawn with a fixed seed; return the rest and the share.

    The rest keeps at least one image of every class; a class of two or more images gives at least one to the share.

    Args:
        source: All images.
        share: Share between 0 and 1; rounded for each class.

    Raises:
        ValueError: If no class has an image to spare.

    Example:
        >>> from flatten_transformer.data.digits import Digits
        >>> train, val = split_off(Digits("train"), 0.2)
        >>> len(train), len(val)
        (1006, 251)
    """
    chosen = draw_share(source.labels, share)
    if not chosen:
        raise ValueError("no class has a second image, so none can be kept for validation: add images, or a folder val")
    everything = range(len(source))
    return Subset(source, [i for i in everything if i not in chosen]), Subset(source, sorted(chosen))


def draw_share(labels: Sequence[int], share: float) -> set[int]:
    """Return the indices of a share of each class, drawn with a fixed seed; empty if no class has two members.

    Args:
        labels: n class numbers.
        share: Share between 0 and 1; rounded for each class, from one to all but one.

    Example:
        >>> len(draw_share([0, 0, 0, 0, 1, 1, 2], 0.5))
        3
    """
    classes: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        classes.setdefault(label, []).append(index)
    chosen: set[int] = set()
    for label, indices in classes.items():
        count = min(max(1, round(share * len(indices))), len(indices) - 1)
        chosen.update(random.Random(label).sample(indices, count))
    return chosen


def check_probabilities(**values: float) -> None:
    """Raise ValueError unless each value lies in 0 … 1; the message names it."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0 … 1, got {value}")
