"""Check a data set that a user registered, and make sources of its pairs of image and class number."""

# n images, K classes.

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from flatten_transformer.data.coco_json import brief
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.source import LeftOut, Source, Splits


class Pairs(Protocol):
    """n pairs of image, or path of an image file, and class number: a list, or any data set of PyTorch with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class OwnSplits(NamedTuple):
    """A data set of your own.

    ``val`` is None if a share of ``train`` must be held out, ``test`` is None if ``val`` serves for both.
    """

    class_names: Sequence[str]
    train: Pairs
    val: Pairs | None = None
    test: Pairs | None = None
    left_out: Sequence[LeftOut] = ()


Opener = Callable[[Path | None], OwnSplits]  # from data.root


class PairSource(Source):
    """Pairs of image, or path of an image file, and class number.

    Args:
        pairs: n pairs; ``labels``, if they have such an attribute, saves reading them all for their classes.
        title: Name of the split, for messages.
    """

    def __init__(self, pairs: Pairs, title: str) -> None:
        self.pairs = pairs
        self._title = title
        self.labels = [_number(label) for label in _labels(pairs)]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = self.pairs[index][0]
        if isinstance(image, str | Path):
            return read_image(image), self.labels[index]
        if not isinstance(image, Image.Image):
            raise ValueError(f"{self.name(index)} is {brief(type(image).__name__)}: give one of Pillow's, or the path of a file")
        return image, self.labels[index]

    def name(self, index: int) -> str:
        """Return the file of an image, or its index and split."""
        image = self.pairs[index][0] if isinstance(self.pairs, list | tuple) else None
        return str(image) if isinstance(image, str | Path) else f"image {index} of {self._title}"


def _labels(pairs: Pairs) -> Iterable[Any]:
    known = getattr(pairs, "labels", None)
    return known if known is not None else (pairs[index][1] for index in range(len(pairs)))


def _number(label: Any) -> Any:
    """Return a class number as Python's, where it is one of NumPy or PyTorch."""
    return label.item() if hasattr(label, "item") else label


def checked(name: str, splits: OwnSplits) -> Splits:
    """Return the splits of a registered data set as sources.

    Raises:
        ValueError: If it is no :class:`OwnSplits`, or has too few classes, no training images, or a class number that is none.
    """
    if not isinstance(splits, OwnSplits):
        cure = "return OwnSplits(class_names, train, val, test)"
        raise ValueError(f"the data set {name!r} gave {brief(type(splits).__name__)}: {cure}")
    class_names = [str(each) for each in splits.class_names]
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        raise ValueError(f"the data set {name!r} has the classes {brief(class_names)}: give two or more, no two alike")
    train, val, test = (
        _source(pairs, f"{name} ({split})", len(class_names))
        for split, pairs in (("train", splits.train), ("val", splits.val), ("test", splits.test))
    )
    if train is None:
        raise ValueError(f"the data set {name!r} has no training image: give pairs of image and class number")
    return Splits(class_names, train, val, test, splits.left_out)


def _source(pairs: Any, title: str, classes: int) -> Source | None:
    if pairs is None or not len(pairs):
        return None
    source = pairs if isinstance(pairs, Source) else PairSource(pairs, title)
    for index, label in enumerate(source.labels):
        if type(label) is not int or not 0 <= label < classes:
            raise ValueError(f"image {index} of {title} is of class {brief(label)}, but the classes are 0 … {classes - 1}")
    return source
