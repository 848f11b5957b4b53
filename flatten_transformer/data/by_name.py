"""Classification data sets by name: digits, image folders, tar shards, Hugging Face and torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flatten_transformer.data import digits, hugging_face, image_folder, shards, torchvision_images
from flatten_transformer.data.preprocessing import IMAGENET
from flatten_transformer.data.source import Format, ImageDefaults, LeftOut, Request, Source, Split, split_off
from flatten_transformer.utils.suggest import did_you_mean

_MODULES = (digits, image_folder, shards, hugging_face, torchvision_images)
FORMATS: dict[str, Format] = {module.FORMAT.names[0].partition("/")[0]: module.FORMAT for module in _MODULES}


class DataSet(NamedTuple):
    """Class names, the images of each split, and the files left out."""

    class_names: Sequence[str]
    sources: Mapping[Split, Source]
    left_out: Sequence[LeftOut] = ()


def image_defaults(name: str) -> ImageDefaults:
    """Return the default image size, channels and statistics of a data set: 224 pixels, RGB and ImageNet's for most.

    Args:
        name: As for :func:`open_data_set`.

    Example:
        >>> image_defaults("torch/mnist").img_size, image_defaults("torch/cifar10").img_size
        (28, 224)
    """
    known = {title: defaults for each in FORMATS.values() for title, defaults in each.defaults.items()}
    return known.get(name.lower(), ImageDefaults(224, 3, *IMAGENET))


def open_data_set(name: str, root: str | Path | None, *, download: bool, val_share: float, img_size: int) -> DataSet:
    """Open a data set by name; any problem with it is raised here, before training starts.

    Args:
        name: ``"digits"``, ``"folder"``, ``"wds"`` or ``"wds/<file name prefix>"``, ``"hfds/<name>"`` or ``"torch/<name>"``.
        root: Data folder; None for the embedded digits, or for the system's own copy.
        download: Fetch missing files into ``root``; torchvision's data sets only.
        val_share: Share of the training images held out for validation if the data set has no validation split.
        img_size: Side of the digits in pixels; other images keep their size.

    Raises:
        ValueError: If the data set is unknown or malformed.
        FileNotFoundError: If ``root`` is missing.

    Example:
        >>> digits = open_data_set("digits", None, download=False, val_share=0.2, img_size=32)
        >>> len(digits.class_names), len(digits.sources["test"])
        (10, 360)
    """
    prefix, _, rest = name.partition("/")
    if prefix.lower() in ("tfds", "hfids"):
        raise ValueError(f"{name!r} is a stream, which cannot be shuffled or resumed: export it to a folder of images or shards")
    format_ = FORMATS.get(prefix.lower())
    if format_ is None or format_.takes_rest not in (None, bool(rest)):
        raise ValueError(
            f"no data set {name!r}: {did_you_mean(name, [title for each in FORMATS.values() for title in each.names])}"
        )
    if download and not format_.downloads:
        raise ValueError(f"download serves torchvision's data sets, such as torch/cifar10, not {name!r}: leave it out")
    splits = format_.open(Request(name, rest, None if root is None else Path(root), download, img_size))
    train, val = (splits.train, splits.val) if splits.val else split_off(splits.train, val_share)
    return DataSet(splits.class_names, {"train": train, "val": val, "test": splits.test or val}, splits.left_out)
