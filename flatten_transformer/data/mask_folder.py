"""Folders of images and segmentation masks: ADE20K's, and a generic layout for custom data."""

# n images of a split, K classes.

from __future__ import annotations

import glob
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from flatten_transformer.data.class_list import read_class_names, read_text
from flatten_transformer.data.image_folder import SUFFIXES, find_images
from flatten_transformer.data.mask_file import read_mask
from flatten_transformer.data.mask_numbers import Numbering
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.safe_paths import check_inside
from flatten_transformer.data.source import Split
from flatten_transformer.data.split_names import STANDARD_NAMES


class MaskedImages:
    """Images and their segmentation masks, read from files on access.

    Args:
        pairs: n pairs of image file and mask file.
        numbering: Meaning of the numbers in the masks.
        folders: Folders that links may lead to; None for any.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], numbering: Numbering, folders: Sequence[Path] | None = None) -> None:
        self.pairs = pairs
        self.numbering = numbering
        self._folders = folders

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Image.Image, tv_tensors.Mask]:
        """Return an image and its mask, ``[height, width]``, int64; IGNORED for pixels without a class.

        Raises:
            ValueError: If a file cannot be used; the message names it.
        """
        image_file, mask_file = self.pairs[index]
        check_inside(image_file, self._folders)
        image, classes = read_image(image_file), self.classes(index)
        if (image.height, image.width) != classes.shape:
            sizes = f"{classes.shape[1]} × {classes.shape[0]} pixels, its image {image.width} × {image.height}"
            raise ValueError(f"the mask {mask_file} has {sizes}: save it in the size of {image_file}")
        return image, tv_tensors.Mask(torch.from_numpy(classes))

    def classes(self, index: int) -> NDArray[np.int64]:
        """Return the class map of a mask, ``[height, width]``; IGNORED for pixels without a class.

        Raises:
            ValueError: If the file cannot be used; the message names it.
        """
        mask_file = self.pairs[index][1]
        check_inside(mask_file, self._folders)
        numbers = read_mask(mask_file)
        try:
            return self.numbering.classes_of(numbers)
        except ValueError as error:
            raise ValueError(f"in the mask {mask_file} {error}") from None

    def name(self, index: int) -> str:
        """Return the path of the image."""
        return str(self.pairs[index][0])


class MaskFolder(NamedTuple):
    """Class names and the images of each split."""

    class_names: list[str]
    splits: Mapping[Split, MaskedImages]


def open_mask_folder(
    root: Path,
    ignore_index: int | None = 255,
    val_share: float = 0.2,
    mask_values: Sequence[int] | None = None,
    *,
    outside_links: bool = False,
) -> MaskFolder:
    """Open images in ``root/images/<split>/``, masks in ``root/masks/<split>/``, class names in ``root/classes.txt``.

    The splits are ``train``, ``val`` (or ``valid``, ``validation``) and ``test``. Without a validation folder, a share of
    the training images is held out; without a test folder, the validation images are used. A mask is a PNG with the name
    of its image; line k of ``classes.txt``, counted from 0, names class k.

    Args:
        root: Data folder.
        ignore_index: Mask value without a class; None if there is none.
        val_share: Share of the training images held out for validation, drawn with a fixed seed.
        mask_values: Mask value of each class, in the order of ``classes.txt``; None for 0, 1 and so on.
        outside_links: Follow links that lead out of ``root``.

    Raises:
        FileNotFoundError: If the folder or a part of it is missing.
        ValueError: If the layout or a file is malformed; the message names the file.

    Example:
        >>> from flatten_transformer.data.scenes import SceneSettings, write_scenes
        >>> root = getfixture("tmp_path") / "scenes"
        >>> write_scenes(root, SceneSettings(train=3, val=1, test=2))
        >>> class_names, splits = open_mask_folder(root)
        >>> class_names[:3], len(splits["train"]), splits["test"][0][1].shape
        (['background', '0', '1'], 3, torch.Size([96, 128]))
    """
    names = read_class_names(_folder(root) / "classes.txt")
    numbering = _numbering(root, names, ignore_index, mask_values)
    folders = {path.name for path in _folder(root / "images").iterdir() if path.is_dir()}
    train = _pairs(root, "images", "masks", "train")
    val_folder = next((name for name in STANDARD_NAMES["val"] if name in folders), None)
    train, val = (train, _pairs(root, "images", "masks", val_folder)) if val_folder else _split_off(train, val_share)
    test = _pairs(root, "images", "masks", "test") if "test" in folders else val
    allowed = None if outside_links else _allowed(root, "images", "masks")
    splits: tuple[tuple[Split, list[tuple[Path, Path]]], ...] = (("train", train), ("val", val), ("test", test))
    return MaskFolder(names, {split: MaskedImages(pairs, numbering, allowed) for split, pairs in splits})


def _numbering(root: Path, names: Sequence[str], ignore_index: int | None, values: Sequence[int] | None) -> Numbering:
    if values is not None and not (len(set(values)) == len(values) == len(names) and min(values) >= 0):
        expected = f"a number for each of the {len(names)} classes of {root / 'classes.txt'}, no two alike, from 0 on"
        raise ValueError(f"mask_values must hold {expected}, got {list(values)}")
    numbering = Numbering(len(names), ignore_index, values=values)
    if ignore_index is not None and ignore_index in numbering.numbers:
        name = names[list(numbering.numbers).index(ignore_index)]
        cure = "take a number that is no class, such as data.ignore_index 255, or null for none"
        raise ValueError(f"ignore_index {ignore_index} is the class {name!r} of {root / 'classes.txt'}: {cure}")
    return numbering


def _allowed(root: Path, images: str, masks: str) -> list[Path]:
    """Return the folders that links may lead to: the data set, whose parts may be links themselves."""
    return [root, *(path for kind in (images, masks) for path in (root / kind, *(root / kind).glob("*")) if path.is_dir())]


def open_ade20k(root: Path, *, outside_links: bool = False) -> MaskFolder:
    """Open ADE20K with its 150 classes in the official layout, ``ADEChallengeData2016``.

    ``images/`` and ``annotations/`` each hold ``training/`` and ``validation/``. Mask values 1 … 150 are the classes, 0 is
    none. Class names come from ``objectInfo150.txt``; without it, classes are numbered. The test masks are not public, so
    the validation images stand in for them.

    Args:
        root: Data folder.
        outside_links: Follow links that lead out of ``root``.

    Raises:
        FileNotFoundError: If the folder or a part of it is missing.
        ValueError: If an image has no mask, or the class list is malformed.
    """
    numbering = Numbering(150, zero_is_no_class=True)
    names = _ade20k_names(_folder(root) / "objectInfo150.txt", numbering.classes)
    allowed = None if outside_links else _allowed(root, "images", "annotations")
    pairs = (_pairs(root, "images", "annotations", split) for split in ("training", "validation"))
    train, val = (MaskedImages(each, numbering, allowed) for each in pairs)
    return MaskFolder(names, {"train": train, "val": val, "test": val})


def _folder(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no folder {path}: check data.root")
    if not path.is_dir():
        raise ValueError(f"{path} is a file: data.root must be a folder with images/, masks/ and classes.txt")
    return path


def _pairs(root: Path, images: str, masks: str, split: str) -> list[tuple[Path, Path]]:
    """Return the pairs of image and mask of a split."""
    folder = _folder(root / images / split)
    images_found = find_images(folder)
    if not images_found:
        raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)}): put the images of this split there, or remove it")
    pairs = [(path, root / masks / split / path.relative_to(folder).with_suffix(".png")) for path in images_found]
    without_mask = [pair for pair in pairs if not pair[1].is_file()]
    if without_mask:
        image, mask = without_mask[0]
        more = f" and {len(without_mask) - 1} more images" if len(without_mask) > 1 else ""
        others = sorted(mask.parent.glob(f"{glob.escape(mask.stem)}.*"))
        cure = f"save {others[0].name} as PNG" if others else "add it, or leave the image out"
        raise ValueError(f"the image {image}{more} has no mask {mask}: {cure}")
    owners: dict[Path, Path] = {}
    for image, mask in pairs:
        if owners.setdefault(mask, image) != image:
            raise ValueError(f"the images {owners[mask]} and {image.name} share the mask {mask}: rename one, and its mask")
    return pairs


def _split_off(pairs: Sequence[tuple[Path, Path]], share: float) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    count = max(1, round(share * len(pairs)))
    if count >= len(pairs):
        raise ValueError(f"none of {len(pairs)} training images can be kept for validation: add images, or a folder images/val")
    chosen = set(random.Random(0).sample(range(len(pairs)), count))
    return [pair for i, pair in enumerate(pairs) if i not in chosen], [pairs[i] for i in sorted(chosen)]


def _ade20k_names(file: Path, count: int) -> list[str]:
    """Return the first synonym of each class; the first column is the class number, the last lists synonyms."""
    if not file.is_file():
        return [f"class {number}" for number in range(1, count + 1)]
    rows = [line.split("\t") for line in read_text(file).split("\n")[1:] if line.strip()]
    names = {row[0].strip(): row[-1].split(",")[0].strip() for row in rows}
    if sorted(names) != sorted(str(number) for number in range(1, count + 1)):
        raise ValueError(f"{file} does not name the classes 1 … {count}, a line each: fetch it anew, or remove it")
    return [names[str(number)] for number in range(1, count + 1)]
