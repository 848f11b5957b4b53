"""The labelled images of a split, and how a share of a split becomes the validation set."""

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
    """Images with their classes: what every data set is made into.

    A subclass sets ``labels``, the class of each of its n images, and reads images in ``__getitem__``.
    """

    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return what an error calls the image."""
        return f"image {index}"


class Part(Source):
    """Some of the images of a source, in the order of ``indices``.

    Args:
        source: Where the images come from.
        indices: Which of them.
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
    """What a data set holds: names of the classes, the images of each split, and what is in none.

    ``val`` is None where a share of ``train`` must do, ``test`` is None where the validation images must.
    """

    class_names: Sequence[str]
    train: Source
    val: Source | None
    test: Source | None
    left_out: Sequence[LeftOut] = ()


class Request(NamedTuple):
    """What a user asks a format for."""

    name: str  # of the data set, such as "wds/pets"
    rest: str  # of the name, behind its slash
    root: Path | None
    download: bool
    img_size: int  # pixels, for images that are drawn

    @property
    def folder(self) -> Path:
        """The root, which must be given."""
        if self.root is None:
            raise ValueError(f"the data set {self.name!r} needs a folder: add --data.root, such as --data.root data/")
        return self.root


class ImageDefaults(NamedTuple):
    """What a model sees of a data set's images unless it is told otherwise."""

    img_size: int  # pixels
    in_chans: int
    mean: Sequence[float]  # of values in 0 … 1, one number a channel, as std
    std: Sequence[float]


class Format(NamedTuple):
    """A way in which labelled images are kept; one file defines it, and one line of ``data_sets.FORMATS`` makes it known."""

    names: Sequence[str]  # that a message lists; all begin with the same word
    takes_rest: bool | None  # whether a name goes on behind a slash; None for as you like
    open: Callable[[Request], Splits]
    downloads: bool = False
    defaults: Mapping[str, ImageDefaults] = {}  # of data sets by their whole names, where they are not ImageNet's


def check_val_share(val_share: float) -> None:
    """Raise ValueError unless a share of the training images can be kept for validation."""
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie between 0 and 1, got {val_share}")


def split_off(source: Source, share: float) -> tuple[Part, Part]:
    """Return a source without a share of each class, and that share, drawn at random but always the same.

    Of every class at least one image stays in the first part; of two images or more at least one goes to the second.

    Args:
        source: All images.
        share: Of the second part, between 0 and 1; rounded for each class.

    Raises:
        ValueError: If no class has an image to spare.

    Example:
        >>> from flatten_transformer.data.digits import Digits
        >>> train, val = split_off(Digits("train"), 0.2)
        >>> len(train), len(val)
        (1006, 251)
    """
    classes: dict[int, list[int]] = {}
    for index, label in enumerate(source.labels):
        classes.setdefault(label, []).append(index)
    chosen: set[int] = set()
    for label, indices in classes.items():
        count = min(max(1, round(share * len(indices))), len(indices) - 1)
        chosen.update(random.Random(label).sample(indices, count))
    if not chosen:
        raise ValueError("no class has a second image, so none can be kept for validation: add images, or a folder val")
    everything = range(len(source))
    return Part(source, [i for i in everything if i not in chosen]), Part(source, sorted(chosen))


def check_probabilities(**values: float) -> None:
    """Raise ValueError unless each value lies in 0 … 1; the message names it."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0 … 1, got {value}")
