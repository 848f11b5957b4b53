"""scikit-learn's handwritten digits: 1,797 real images of 8 × 8 pixels, no download."""

# n images of the split.

from __future__ import annotations

import numpy as np
from PIL import Image

from flatten_transformer.data.source import Format, ImageDefaults, Request, Source, Split, Splits

CLASS_NAMES = tuple("0123456789")
_SPLIT_SEED = 0  # fixed: another seed would move training images into the test split


class Digits(Source):
    """The digits of one split (train 1,257, val 180, test 360) as greyscale images, light on dark.

    The splits are disjoint, stratified by class, and the same in every run.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: Side of the images in pixels; the 8 × 8 originals are upsampled bicubically, once.

    Example:
        >>> digits = Digits("test", size=32)
        >>> image, label = digits[0]
        >>> len(digits), image.size, image.mode
        (360, (32, 32), 'L')
    """

    def __init__(self, split: Split, size: int = 8) -> None:
        from sklearn.datasets import load_digits  # slow to import, not needed for inference

        data = load_digits()
        indices = split_indices(data.target)[split]
        pixels = np.rint(data.images[indices] * (255 / 16)).astype(np.uint8)  # [n, 8, 8]
        self.images = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in pixels]
        self.labels = data.target[indices].tolist()

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], self.labels[index]


def split_indices(labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[Split, list[int]]:
    """Return the image indices of train (70 %), val (10 %) and test (20 %), stratified by class.

    Args:
        labels: Class of each image, ``[images]``.
    """
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=_SPLIT_SEED)
    train, val = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=_SPLIT_SEED)
    return {"train": train, "val": val, "test": test}


def open_digits(request: Request) -> Splits:
    """Return the three splits.

    Raises:
        ValueError: If a root is given.
    """
    if (root := request.root) is not None:
        raise ValueError(f"the digits are embedded and take no root, got {root}: for your own images add --data.dataset folder")
    size = request.img_size
    return Splits(CLASS_NAMES, Digits("train", size), Digits("val", size), Digits("test", size))


FORMAT = Format(("digits",), False, open_digits, defaults={"digits": ImageDefaults(32, 1, (0.309,), (0.349,))})
