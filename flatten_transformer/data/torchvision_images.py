"""torchvision data sets opened by timm, and the IDX files of MNIST and its relatives."""

# n images.

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

from flatten_transformer.data.image_files import read_image
from flatten_transformer.data.source import Format, ImageDefaults, Source, Splits
from flatten_transformer.utils.suggest import did_you_mean

TRAIN_AND_TEST = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist")  # no validation split
TORCHVISION = (*(f"torch/{name}" for name in TRAIN_AND_TEST), "torch/imagenet", "torch/places365")
_MAX_BYTES = 2**28  # five times the 60,000 images of MNIST
_PACKED = {"torch/fashion_mnist": FashionMNIST, "torch/kmnist": KMNIST, "torch/mnist": MNIST}
_INSTALLED = {"torch/fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}  # by Debian's dataset-fashion-mnist


class TorchvisionImages(Source):
    """A torchvision data set, opened by timm.

    Args:
        name: timm's name, such as ``torch/cifar10``.
        root: Data folder.
        split: ``"train"`` or ``"validation"``, in timm's sense.
        download: Fetch what ``root`` lacks.

    Raises:
        ValueError: If timm does not know the data set, or it is missing.
    """

    def __init__(self, name: str, root: Path, split: str, download: bool) -> None:
        try:
            self.dataset: Any = create_dataset(name, root=str(root), split=split, download=download)
            self.labels = np.asarray(self.dataset.targets).tolist()
            self.class_names = [name if isinstance(name, str) else ", ".join(name) for name in self.dataset.classes]
        except AssertionError:
            raise ValueError(f"timm knows no data set {name!r}: {did_you_mean(name, TORCHVISION)}") from None
        except AttributeError as error:
            raise ValueError(f"{name} does not say its classes ({error}): {did_you_mean(name, TORCHVISION)}") from None
        except RuntimeError as error:
            raise ValueError(
                f"{name} cannot be opened in {root} ({error}): check data.root, or add --data.download true"
            ) from None
        if hasattr(self.dataset, "loader"):  # torchvision's own loader accepts all of Pillow's formats
            self.dataset.loader = read_image
        self._title = f"{name} ({split})"

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, _ = self.dataset[index]
        return image, self.labels[index]

    def name(self, index: int) -> str:
        """Return the index and source of an image."""
        return f"image {index} of {self._title}"


class PackedImages(Source):
    """Greyscale images in MNIST's IDX files, ``<part>-images-idx3-ubyte.gz`` and ``<part>-labels-idx1-ubyte.gz``.

    Args:
        root: Folder of the files.
        part: ``"train"`` or ``"t10k"``, the test images.

    Raises:
        ValueError: If a file is missing or damaged.
    """

    def __init__(self, root: Path, part: str) -> None:
        self.images = _unpack(root / f"{part}-images-idx3-ubyte.gz")  # [n, height, width]
        self.labels = _unpack(root / f"{part}-labels-idx1-ubyte.gz").tolist()
        if max(self.labels, default=0) > 9:
            raise ValueError(f"{root} has a label {max(self.labels)} in {part}, but the classes are 0 … 9: copy it anew")
        if len(self.images) != len(self.labels):
            raise ValueError(f"{root} holds {len(self.images)} images {part}, but {len(self.labels)} labels: copy it anew")
        self._title = f"{root}/{part}"

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), self.labels[index]

    def name(self, index: int) -> str:
        """Return the index and source of an image."""
        return f"image {index} of {self._title}"


def _unpack(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the array in an IDX file: two zero bytes, 8 (uint8), number of axes, sizes, data."""
    try:
        with gzip.open(path) as file:
            axes = file.read(4)[3]
            shape = np.frombuffer(file.read(4 * axes), ">u4", count=axes).tolist()
            size = math.prod(shape)
            if size > _MAX_BYTES:
                raise ValueError(f"it says that it holds {size:,} bytes")
            return np.frombuffer(file.read(size), np.uint8).reshape(shape)
    except FileNotFoundError:
        raise ValueError(f"no file {path}: copy the data set anew, or give another data.root") from None
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): copy the data set anew") from None


def open_torchvision(name: str, root: Path | None, *, download: bool) -> Splits:
    """Open a torchvision data set.

    Args:
        name: timm's name, such as ``torch/cifar10``.
        root: Data folder in torchvision's layout or, for MNIST and its relatives, with the four published files; None for
            the system's own copy.
        download: Fetch what ``root`` lacks.

    Raises:
        ValueError: If timm does not know the data set, or it is missing.
    """
    if root is None:
        root = _installed(name)
    if name in _PACKED and (root / "train-images-idx3-ubyte.gz").is_file():
        class_names: Sequence[str] = _PACKED[name].classes
        return Splits(class_names, PackedImages(root, "train"), None, PackedImages(root, "t10k"))
    train = TorchvisionImages(name, root, "train", download)
    evaluated = TorchvisionImages(name, root, "validation", download)
    if name.removeprefix("torch/") in TRAIN_AND_TEST:  # the test images must not choose the checkpoint
        return Splits(train.class_names, train, None, evaluated)
    return Splits(train.class_names, train, evaluated, None)


def _installed(name: str) -> Path:
    folder = _INSTALLED.get(name)
    if folder is not None and folder.is_dir():
        return folder
    package = "" if folder is None else f", or install the package dataset-fashion-mnist, which makes {folder}"
    raise ValueError(f"the data set {name!r} needs a folder: add --data.root, such as --data.root data/{package}")


FORMAT = Format(
    TORCHVISION,
    True,
    lambda request: open_torchvision(request.name.lower(), request.root, download=request.download),
    downloads=True,
    defaults={
        "torch/fashion_mnist": ImageDefaults(28, 1, (0.2860,), (0.3530,)),
        "torch/mnist": ImageDefaults(28, 1, (0.1307,), (0.3081,)),
    },
)
