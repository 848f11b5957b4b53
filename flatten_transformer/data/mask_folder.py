"""Folders of images and segmentation masks: ADE20K's, and a generic layout for custom data."""

# n images of a split, K classes.

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from flatten_transformer.data.class_list import read_text
from flatten_transformer.data.image_folder import SUFFIXES
from flatten_transformer.data.mask_classes import mask_class_names
from flatten_transformer.data.mask_file import read_mask
from flatten_transformer.data.mask_numbers import Numbering
from flatten_transformer.data.mask_pairs import MASK_FOLDERS, Pairs, image_roots, mask_pairs, mask_roots
from flatten_transformer.data.pairing import images_of, split_folders
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.safe_paths import check_inside
from flatten_transformer.data.source import Split


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
    """Class names, the images of each split, and the folders of all images and all masks."""

    class_names: list[str]
    splits: Mapping[Split, MaskedImages]
    images: Sequence[Path]
    masks: Sequence[Path]


def open_mask_folder(
    root: Path,
    ignore_index: int | None = 255,
    val_share: float = 0.2,
    mask_values: Sequence[int] | None = None,
    *,
    outside_links: bool = False,
) -> MaskFolder:
    """Open images in ``root/images/<split>/``, masks in ``root/masks/<split>/``, class names in ``root/classes.txt``.

    The splits are ``train``, ``val`` and ``test``, or common variants of these names; they may also lie above, as in
    ``root/train/images/``, and without any all images are for training. Without a validation folder, a share of
    the training images is held out; without a test folder, the validation images are used. A mask is a PNG with the name
    of its image, or of it and ``_mask``, in a folder ``masks``, ``labels`` or ``annotations``, or beside it. Line k of
    ``classes.txt``, counted from 0, names class k; a ``classes.json`` may do so too, and without either classes are numbered.

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
        >>> found = open_mask_folder(root)
        >>> found.class_names[:3], len(found.splits["train"]), found.splits["test"][0][1].shape
        (['background', '0', '1'], 3, torch.Size([96, 128]))
    """
    folders = split_folders(_folder(root), MASK_FOLDERS)
    pairs = {split: mask_pairs(_images(folder), root) for split, folder in folders.items()}
    train = pairs["train"]
    train, val = (train, pairs["val"]) if "val" in pairs else _split_off(train, val_share)
    everything = [pair for each in pairs.values() for pair in each]
    images, masks = image_roots(folders.values()), mask_roots(everything, root)
    allowed = None if outside_links else _allowed(root, [*images, *masks])
    names = mask_class_names(root, [mask for _, mask in everything], ignore_index, mask_values, allowed)
    numbering = _numbering(root, names, ignore_index, mask_values)
    splits: tuple[tuple[Split, Pairs], ...] = (("train", train), ("val", val), ("test", pairs.get("test", val)))
    return MaskFolder(names, {split: MaskedImages(each, numbering, allowed) for split, each in splits}, images, masks)


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


def _allowed(root: Path, parts: Sequence[Path]) -> list[Path]:
    """Return the folders that links may lead to: the data set, whose parts may be links themselves."""
    return [root, *(path for part in parts for path in (part, *part.glob("*")) if path.is_dir())]


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
    images, masks = root / "images", root / "annotations"
    allowed = None if outside_links else _allowed(root, [images, masks])
    pairs = (mask_pairs(_images(images / split), root, [masks.name]) for split in ("training", "validation"))
    train, val = (MaskedImages(each, numbering, allowed) for each in pairs)
    return MaskFolder(names, {"train": train, "val": val, "test": val}, [images], [masks])


def _folder(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no folder {path}: check data.root")
    if not path.is_dir():
        raise ValueError(f"{path} is a file: data.root must be a folder with images/, masks/ and classes.txt")
    return path


def _images(folder: Path) -> list[Path]:
    """Return the images of a split."""
    images = images_of(_folder(folder), MASK_FOLDERS)
    if not images:
        raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)}): put the images of this split there, or remove it")
    return images


def _split_off(pairs: Pairs, share: float) -> tuple[Pairs, Pairs]:
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
