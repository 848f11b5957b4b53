"""Data sets by name: the embedded digits, a folder of images or of tar files, Hugging Face's, and torchvision's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from flatten_transformer.data.digits import CLASS_NAMES, Digits
from flatten_transformer.data.hugging_face import open_hugging_face
from flatten_transformer.data.image_folder import open_folder
from flatten_transformer.data.preprocessing import Preprocessing
from flatten_transformer.data.shards import open_shards
from flatten_transformer.data.source import LeftOut, Source, Split, Splits, split_off
from flatten_transformer.data.torchvision_images import TORCHVISION, open_torchvision
from flatten_transformer.hints import hint

_KINDS = ("digits", "folder", "hfds", "torch", "wds")
_NAMES = ("digits", "folder", "wds", "hfds/<name>", *TORCHVISION)
_GREY = {
    "digits": Preprocessing(32, 1, (0.309,), (0.349,)),
    "torch/fashion_mnist": Preprocessing(28, 1, (0.2860,), (0.3530,)),
    "torch/mnist": Preprocessing(28, 1, (0.1307,), (0.3081,)),
}
_COLOUR = Preprocessing(224, 3, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class DataSet(NamedTuple):
    """Names of the classes, the images of each split, and what is in none."""

    class_names: Sequence[str]
    sources: Mapping[Split, Source]
    left_out: Sequence[LeftOut] = ()


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
        name: ``"digits"``, ``"folder"``, ``"wds"`` or ``"wds/<beginning of the files' names>"``, ``"hfds/<name>"`` or
            ``"torch/<name>"``.
        root: Folder of the data; None for the digits, which are embedded, and where the system has it elsewhere.
        download: Fetch what ``root`` lacks; torchvision's data sets only.
        val_share: Share of the training images that is kept for validation where the data set has none of its own.
        img_size: Side of the digits in pixels; other images are opened as large as they are.

    Raises:
        ValueError: If there is no such data set, or it is not as it should be.
        FileNotFoundError: If ``root`` is missing.

    Example:
        >>> digits = open_data_set("digits", None, download=False, val_share=0.2, img_size=32)
        >>> len(digits.class_names), len(digits.sources["test"])
        (10, 360)
    """
    kind, _, rest = name.partition("/")
    kind = kind.lower()
    _check(name, kind, rest)
    if download and kind != "torch":
        raise ValueError(f"download serves torchvision's data sets, such as torch/cifar10, not {name!r}: leave it out")
    folder = None if root is None else Path(root)
    if kind == "digits":
        found = _digits(folder, img_size)
    elif kind == "torch":
        found = open_torchvision(name.lower(), folder, download=download)
    elif kind == "hfds":
        found = open_hugging_face(rest, folder)
    elif folder is None:
        raise ValueError(f"the data set {name!r} needs a folder: add --data.root, such as --data.root data/")
    else:
        found = open_folder(folder) if kind == "folder" else open_shards(folder, rest)
    train, val = (found.train, found.val) if found.val else split_off(found.train, val_share)
    return DataSet(found.class_names, {"train": train, "val": val, "test": found.test or val}, found.left_out)


def _check(name: str, kind: str, rest: str) -> None:
    """Raise ValueError unless ``name``, which is ``kind/rest``, may be a data set."""
    if kind in ("tfds", "hfids"):
        raise ValueError(f"{name!r} is a stream, which cannot be shuffled or resumed: export it to a folder of images or shards")
    if (kind in ("digits", "folder") and rest) or (kind in ("torch", "hfds") and not rest) or kind not in _KINDS:
        raise ValueError(f"no data set {name!r}: {hint(name, _NAMES)}")


def _digits(root: Path | None, img_size: int) -> Splits:
    if root is not None:
        raise ValueError(f"the digits are embedded and take no root, got {root}: for your own images add --data.dataset folder")
    return Splits(CLASS_NAMES, Digits("train", img_size), Digits("val", img_size), Digits("test", img_size))
