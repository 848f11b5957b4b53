"""Classification data sets by name: digits, image folders, tar shards, Hugging Face and torchvision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from flatten_transformer.data import digits, hugging_face, image_folder, shards, torchvision_images
from flatten_transformer.data.preprocessing import IMAGENET
from flatten_transformer.data.registered import Opener, checked
from flatten_transformer.data.registered import OwnSplits as OwnSplits
from flatten_transformer.data.source import Format, LeftOut, Request, Source, Split, split_off
from flatten_transformer.data.source import ImageDefaults as ImageDefaults
from flatten_transformer.utils.suggest import did_you_mean

_MODULES = (digits, image_folder, shards, hugging_face, torchvision_images)
FORMATS: dict[str, Format] = {module.FORMAT.names[0].partition("/")[0]: module.FORMAT for module in _MODULES}


_STREAMS = ("tfds", "hfids")
_BUNDLED = frozenset(FORMATS)
_OPENERS: dict[str, Callable[..., object]] = {}  # of registered data sets
Function = TypeVar("Function", bound=Opener)


class DataSet(NamedTuple):
    """Class names, the images of each split, and the files left out."""

    class_names: Sequence[str]
    sources: Mapping[Split, Source]
    left_out: Sequence[LeftOut] = ()


def register_data_set(name: str, defaults: ImageDefaults | None = None) -> Callable[[Function], Function]:
    """Register a data set of your own under a name, for ``--data.dataset`` of every classification.

    Args:
        name: The name, without a slash, whatever its case.
        defaults: Image size, channels, mean and deviation; None for 224 pixels, colour and ImageNet's.

    Returns:
        A decorator that returns its function unchanged. The function takes ``data.root``, None if it is not given, and returns
        :class:`OwnSplits`: the class names and, as train, val and test, sequences of pairs of image and class number; an image
        is one of Pillow's, or the path of a file. ``val`` may be None, for a share of ``train``, and ``test``, for ``val``.

    Raises:
        ValueError: If the name is taken by another data set, or cannot be one.

    Example:
        >>> from PIL import Image
        >>> @register_data_set("greys", defaults=ImageDefaults(8, 1, (0.5,), (0.5,)))
        ... def greys(root):
        ...     return OwnSplits(["dark", "light"], [(Image.new("L", (8, 8), 30 * n), int(n > 3)) for n in range(8)])
        >>> data_set = open_data_set("greys", None, download=False, val_share=0.25, img_size=8)
        >>> len(data_set.sources["train"]), len(data_set.sources["val"])
        (6, 2)
        >>> unregister_data_set("greys")
    """
    key = name.lower()
    if not key or "/" in key or key != key.strip():
        raise ValueError(f"{name!r} cannot be the name of a data set: choose a word without a slash")

    def register(function: Function) -> Function:
        taken = _OPENERS.get(key)
        # the same function again: a notebook cell was rerun
        if key in _BUNDLED or key in _STREAMS or (taken is not None and _identity(taken) != _identity(function)):
            raise ValueError(f"the data set {name!r} is there already: choose another name")
        known = {} if defaults is None else {key: defaults}
        FORMATS[key] = Format((key,), False, lambda request: checked(key, function(request.root)), defaults=known)
        _OPENERS[key] = function
        return function

    return register


def unregister_data_set(name: str) -> None:
    """Remove a registered data set.

    Raises:
        ValueError: If it is not registered.
    """
    if name.lower() not in _OPENERS:
        raise ValueError(f"no data set {name!r} is registered: {did_you_mean(name, _OPENERS)}")
    del _OPENERS[name.lower()], FORMATS[name.lower()]


def _identity(function: Callable[..., object]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


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
        name: ``"digits"``, ``"folder"``, ``"wds"`` or ``"wds/<file name prefix>"``, ``"hfds/<name>"``, ``"torch/<name>"``, or
            one of :func:`register_data_set`.
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
    if prefix.lower() in _STREAMS:
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
