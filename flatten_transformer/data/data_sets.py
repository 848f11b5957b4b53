"""Data sets by name: the embedded digits, a folder of images, and torchvision's through timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset

from flatten_transformer.data.digits import CLASS_NAMES, Digits
from flatten_transformer.data.image_folder import open_folder
from flatten_transformer.data.preprocessing import Preprocessing
from flatten_transformer.data.source import Source, Split, split_off
from flatten_transformer.hints import hint

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_TRAIN_AND_TEST = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist")  # these have no validation images
_NAMES = ("digits", "folder", *(f"torch/{name}" for name in _TRAIN_AND_TEST), "torch/imagenet", "torch/places365")
_GREY = {
    "digits": Preprocessing(32, 1, (0.309,), (0.349,)),
    "torch/fashion_mnist": Preprocessing(28, 1, (0.2860,), (0.3530,)),
    "torch/mnist": Preprocessing(28, 1, (0.1307,), (0.3081,)),
}
_COLOUR = Preprocessing(224, 3, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class DataSet(NamedTuple):
    """Names of the classes, and what opens the images of each split."""

    class_names: Sequence[str]
    openers: Mapping[Split, Callable[[], Source]]


def fill_in(
    dataset: str, img_size: int | None, in_chans: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """Return the preprocessing of a data set, with its own numbers wherever None is given.

    The digits are 32 pixels wide and grey, MNIST and Fashion-MNIST 28 and grey, with their own mean and deviation;
    everything else is 224 and in colour, with those of ImageNet. For another number of channels, each gets the average.

    Args:
        dataset: Name of the data set.
        img_size: Side in pixels.
        in_chans: 1 for grey, 3 for colour.
        mean: One number a channel.
        std: One number a channel.

    Raises:
        ValueError: If a number is out of range or ``mean`` and ``std`` do not fit ``in_chans``.

    Example:
        >>> fill_in("torch/mnist", None, 3, None, (0.5, 0.5, 0.5))
        Preprocessing(img_size=28, in_chans=3, mean=(0.1307, 0.1307, 0.1307), std=(0.5, 0.5, 0.5), crop_pct=1.0)
    """
    own = _GREY.get(dataset.lower(), _COLOUR)
    size, channels = own.img_size if img_size is None else img_size, own.in_chans if in_chans is None else in_chans

    def fit(values: Sequence[float]) -> Sequence[float]:
        return values if len(values) == channels else (sum(values) / len(values),) * channels

    return Preprocessing(size, channels, fit(own.mean) if mean is None else mean, fit(own.std) if std is None else std)


def open_data_set(name: str, root: str | Path | None, *, download: bool, val_share: float, img_size: int) -> DataSet:
    """Find a data set; what is wrong with it is said here, before anything is trained.

    Args:
        name: ``"digits"``, ``"folder"`` or ``"torch/<name>"``.
        root: Folder of the data; None for the digits, which are embedded.
        download: Fetch what ``root`` lacks; torchvision's data sets only.
        val_share: Share of the training images that is kept for validation where the data set has none of its own.
        img_size: Side of the digits in pixels; other images are opened as large as they are.

    Raises:
        ValueError: If there is no such data set, or it is not as it should be.
        FileNotFoundError: If ``root`` is missing.

    Example:
        >>> digits = open_data_set("digits", None, download=False, val_share=0.2, img_size=32)
        >>> len(digits.class_names), len(digits.openers["test"]())
        (10, 360)
    """
    prefix, _, short = name.lower().partition("/")
    if name not in ("digits", "folder") and not (prefix == "torch" and short):
        raise ValueError(f"no data set {name!r}: {hint(name, _NAMES)}")
    if download and prefix != "torch":
        raise ValueError(f"download serves torchvision's data sets, such as torch/cifar10, not {name!r}: leave it out")
    if name == "digits":
        if root is not None:
            raise ValueError(
                f"the digits are embedded and take no root, got {root}: for your own images add --data.dataset folder"
            )
        return DataSet(CLASS_NAMES, {split: partial(Digits, split, img_size) for split in _SPLITS})
    if root is None:
        raise ValueError(f"the data set {name!r} needs a folder: add --data.root, such as --data.root data/")
    if name == "folder":
        return _folder(Path(root), val_share)
    return _torchvision(name.lower(), Path(root), download, val_share)


def _folder(root: Path, val_share: float) -> DataSet:
    found = open_folder(root)
    train, val = (found.train, found.val) if found.val else split_off(found.train, val_share)
    sources: dict[Split, Source] = {"train": train, "val": val, "test": found.test or val}
    return DataSet(found.class_names, {split: partial(_same, source) for split, source in sources.items()})


def _same(source: Source) -> Source:
    return source


class TorchvisionImages(Source):
    """A data set of torchvision, opened by timm.

    Args:
        name: timm's name, such as ``torch/cifar10``.
        root: Its folder.
        split: ``"train"`` or ``"validation"``, as timm understands them.
        download: Fetch what ``root`` lacks.

    Raises:
        ValueError: If timm does not know it, or it is not there.
    """

    def __init__(self, name: str, root: Path, split: str, download: bool) -> None:
        try:
            self.dataset: Any = create_dataset(name, root=str(root), split=split, download=download)
            self.labels = np.asarray(self.dataset.targets).tolist()
            self.class_names = [name if isinstance(name, str) else ", ".join(name) for name in self.dataset.classes]
        except AssertionError:
            raise ValueError(f"timm knows no data set {name!r}: {hint(name, _NAMES)}") from None
        except AttributeError as error:
            raise ValueError(f"{name} does not say its classes ({error}): {hint(name, _NAMES)}") from None
        except RuntimeError as error:
            raise ValueError(
                f"{name} cannot be opened in {root} ({error}): check data.root, or add --data.download true"
            ) from None
        self._title = f"{name} ({split})"

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, _ = self.dataset[index]
        return image, self.labels[index]

    def name(self, index: int) -> str:
        """Return the number of the image and where it is from."""
        return f"image {index} of {self._title}"


def _torchvision(name: str, root: Path, download: bool, val_share: float) -> DataSet:
    train = TorchvisionImages(name, root, "train", download)
    judged = partial(TorchvisionImages, name, root, "validation", download)
    if name.removeprefix("torch/") not in _TRAIN_AND_TEST:
        return DataSet(train.class_names, {"train": partial(_same, train), "val": judged, "test": judged})
    kept, val = split_off(train, val_share)  # the test images must not choose the checkpoint
    return DataSet(train.class_names, {"train": partial(_same, kept), "val": partial(_same, val), "test": judged})
