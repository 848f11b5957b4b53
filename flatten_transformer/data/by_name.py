"""Data sets by name: the embedded digits, a folder of images or of tar files, Hugging Face's, and torchvision's."""

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
    """Names of the classes, the images of each split, and what is in none."""

    class_names: Sequence[str]
    sources: Mapping[Split, Source]
    left_out: Sequence[LeftOut] = ()


def image_defaults(name: str) -> ImageDefaults:
    """Return what a model sees of a data set's images unless it is told otherwise: 224 pixels in colour for most.

    Args:
        name: As for :func:`open_data_set`.

    Example:
        >>> image_defaults("torch/mnist").img_size, image_defaults("torch/cifar10").img_size
        (28, 224)
    """
    known = {title: defaults for each in FORMATS.values() for title, defaults in each.defaults.items()}
    return known.get(name.lower(), ImageDefaults(224, 3, *IMAGENET))


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
    prefix, _, rest = name.partition("/")
    if prefix.lower() in ("tfds", "hfids"):
        raise ValueError(f"{name!r} is a stream, which cannot be shuffled or resumed: export it to a folder of images or shards")
    kept = FORMATS.get(prefix.lower())
    if kept is None or kept.takes_rest not in (None, bool(rest)):
        raise ValueError(
            f"no data set {name!r}: {did_you_mean(name, [title for each in FORMATS.values() for title in each.names])}"
        )
    if download and not kept.downloads:
        raise ValueError(f"download serves torchvision's data sets, such as torch/cifar10, not {name!r}: leave it out")
    found = kept.open(Request(name, rest, None if root is None else Path(root), download, img_size))
    train, val = (found.train, found.val) if found.val else split_off(found.train, val_share)
    return DataSet(found.class_names, {"train": train, "val": val, "test": found.test or val}, found.left_out)
