"""Folders of images and of masks that say the class of each pixel: ADE20K's, and your own."""

# n images of a split, K classes.

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from flatten_transformer.data.image_folder import SUFFIXES, find_images
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.source import Split

IGNORED = -1  # the class of pixels that nothing is learned from and nothing is judged by
_VAL = ("val", "valid", "validation")


class Numbering(NamedTuple):
    """What the numbers in the masks of a data set mean."""

    classes: int  # K
    ignore_index: int = 255  # the number that means no class
    zero_is_no_class: bool = False  # so that the classes are 1 … K, as ADE20K's

    @property
    def first(self) -> int:
        """The number of class 0."""
        return int(self.zero_is_no_class)

    def classes_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the class of each pixel, int64, IGNORED where there is none.

        Args:
            numbers: Of a mask, ``[height, width]``.

        Raises:
            ValueError: If a number means nothing; the message holds it.

        Example:
            >>> Numbering(2, zero_is_no_class=True).classes_of(np.array([[0, 1, 2, 255]])).tolist()
            [[-1, 0, 1, -1]]
        """
        found = numbers.astype(np.int64) - self.first
        nothing = (numbers == self.ignore_index) | ((numbers == 0) & self.zero_is_no_class)
        unknown = numbers[(found >= self.classes) & ~nothing]
        if unknown.size:
            most = self.first + self.classes - 1
            raise ValueError(
                f"the class number {unknown[0]} is in {unknown.size} pixels, but the classes are {self.first} … {most} "
                f"and {self.ignore_index} means none: add the class to the list, or repair the mask"
            )
        return np.where(nothing, IGNORED, found)


class MaskedImages:
    """Images with the class of each pixel, read from files when they are asked for.

    Args:
        pairs: n files of images, each with that of its mask.
        numbering: What the numbers in the masks mean.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], numbering: Numbering) -> None:
        self.pairs = pairs
        self.numbering = numbering

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Image.Image, tv_tensors.Mask]:
        """Return an image and its mask, ``[height, width]``, int64; IGNORED where there is no class.

        Raises:
            ValueError: If a file cannot be used; the message names it.
        """
        image_file, mask_file = self.pairs[index]
        image, numbers = read_image(image_file), read_mask(mask_file)
        if (image.height, image.width) != numbers.shape:
            sizes = f"{numbers.shape[1]} × {numbers.shape[0]} pixels, its image {image.width} × {image.height}"
            raise ValueError(f"the mask {mask_file} has {sizes}: save it in the size of {image_file}")
        try:
            return image, tv_tensors.Mask(torch.from_numpy(self.numbering.classes_of(numbers)))
        except ValueError as error:
            raise ValueError(f"in the mask {mask_file} {error}") from None

    def name(self, index: int) -> str:
        """Return the path of the image."""
        return str(self.pairs[index][0])


class MaskFolder(NamedTuple):
    """What a folder holds: the names of the classes, and the images of each split."""

    class_names: list[str]
    splits: Mapping[Split, MaskedImages]


def read_mask(path: Path) -> np.ndarray:
    """Return the numbers in a mask, ``[height, width]``: the indices of a palette, or values of grey of 8 or 16 bits.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image, or one in colour.
    """
    mask = read_image(path)
    if mask.mode == "1":
        return np.asarray(mask).astype(np.uint8)
    if mask.mode not in ("L", "P") and not mask.mode.startswith("I"):
        raise ValueError(
            f"the mask {path} is in colour ({mask.mode}), which names no class: save it as a PNG of one channel or with a "
            f"palette, whose values are the numbers of the classes"
        )
    return np.asarray(mask)


def open_mask_folder(root: Path, ignore_index: int = 255, val_share: float = 0.2) -> MaskFolder:
    """Find images in ``root/images/<split>/``, masks in ``root/masks/<split>/``, class names in ``root/classes.txt``.

    The splits are ``train``, ``val`` (or ``valid``, ``validation``) and ``test``. Without a validation folder a share of
    the training images takes its place; without a test folder the validation images do. A mask is a PNG of its image's
    name; line k of ``classes.txt`` names the class of number k, counted from 0.

    Args:
        root: The folder.
        ignore_index: The number in the masks that means no class.
        val_share: Share of the training images kept for validation, at random but always the same.

    Raises:
        FileNotFoundError: If the folder or a part of it is missing.
        ValueError: If it is not as it should be; the message names the file.

    Example:
        >>> from flatten_transformer.data.scenes import SceneSettings, write_scenes
        >>> root = getfixture("tmp_path") / "scenes"
        >>> write_scenes(root, SceneSettings(train=3, val=1, test=2))
        >>> class_names, splits = open_mask_folder(root)
        >>> class_names[:3], len(splits["train"]), splits["test"][0][1].shape
        (['background', '0', '1'], 3, torch.Size([96, 128]))
    """
    names = _class_names(_folder(root) / "classes.txt")
    if 0 <= ignore_index < len(names):
        cure = "take a number that is no class, such as data.ignore_index 255"
        raise ValueError(f"ignore_index {ignore_index} is the class {names[ignore_index]!r} of {root / 'classes.txt'}: {cure}")
    numbering = Numbering(len(names), ignore_index)
    folders = {path.name for path in _folder(root / "images").iterdir() if path.is_dir()}
    train = _pairs(root, "images", "masks", "train")
    val_folder = next((name for name in _VAL if name in folders), None)
    train, val = (train, _pairs(root, "images", "masks", val_folder)) if val_folder else _split_off(train, val_share)
    test = _pairs(root, "images", "masks", "test") if "test" in folders else val
    return MaskFolder(
        names,
        {
            "train": MaskedImages(train, numbering),
            "val": MaskedImages(val, numbering),
            "test": MaskedImages(test, numbering),
        },
    )


def open_ade20k(root: Path) -> MaskFolder:
    """Find ADE20K's 150 classes as its authors publish them, in ``ADEChallengeData2016``.

    That is ``images/`` and ``annotations/``, both with ``training/`` and ``validation/``. The numbers 1 … 150 in the
    masks are the classes, 0 is none. The names come from ``objectInfo150.txt`` beside them; without it they are
    numbers. There are no masks of the test images, so the validation images take their place.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If the folder or a part of it is missing.
        ValueError: If an image has no mask, or the list of names is not as it should be.
    """
    numbering = Numbering(150, zero_is_no_class=True)
    names = _ade20k_names(_folder(root) / "objectInfo150.txt", numbering.classes)
    train, val = (MaskedImages(_pairs(root, "images", "annotations", split), numbering) for split in ("training", "validation"))
    return MaskFolder(names, {"train": train, "val": val, "test": val})


def _folder(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no folder {path}: check data.root")
    if not path.is_dir():
        raise ValueError(f"{path} is a file: data.root must be a folder with images/, masks/ and classes.txt")
    return path


def _class_names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"no list of classes {file}: write one with a name a line, that of number 0 first")
    names = [line.strip() for line in file.read_text("utf-8").splitlines()]
    while names and not names[-1]:
        names.pop()
    if len(names) < 2:
        raise ValueError(f"{file} names {len(names)} classes, but it takes two to tell apart: write a name a line")
    if "" in names:
        raise ValueError(
            f"line {names.index('') + 1} of {file} is empty: name the class of number {names.index('')}, or remove it"
        )
    return names


def _pairs(root: Path, images: str, masks: str, split: str) -> list[tuple[Path, Path]]:
    """Return each image of a split with its mask."""
    folder = _folder(root / images / split)
    found = find_images(folder)
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)}): put the images of this split there, or remove it")
    pairs = [(path, root / masks / split / path.relative_to(folder).with_suffix(".png")) for path in found]
    lonely = [pair for pair in pairs if not pair[1].is_file()]
    if lonely:
        image, mask = lonely[0]
        more = f" and {len(lonely) - 1} more images" if len(lonely) > 1 else ""
        raise ValueError(f"the image {image}{more} has no mask {mask}: add it, or leave the image out")
    return pairs


def _split_off(pairs: Sequence[tuple[Path, Path]], share: float) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    count = max(1, round(share * len(pairs)))
    if count >= len(pairs):
        raise ValueError(f"none of {len(pairs)} training images can be kept for validation: add images, or a folder images/val")
    chosen = set(random.Random(0).sample(range(len(pairs)), count))
    return [pair for i, pair in enumerate(pairs) if i not in chosen], [pairs[i] for i in sorted(chosen)]


def _ade20k_names(file: Path, count: int) -> list[str]:
    """Return the first word for each class; the file lists synonyms in its last column, the number in its first."""
    if not file.is_file():
        return [f"class {number}" for number in range(1, count + 1)]
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()[1:] if line.strip()]
    names = {row[0].strip(): row[-1].split(",")[0].strip() for row in rows}
    if sorted(names) != sorted(str(number) for number in range(1, count + 1)):
        raise ValueError(f"{file} does not name the classes 1 … {count}, a line each: fetch it anew, or remove it")
    return [names[str(number)] for number in range(1, count + 1)]
