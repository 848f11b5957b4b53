"""Images without labels, in any folders."""

from __future__ import annotations

from pathlib import Path

from flatten_transformer.data.image_folder import SUFFIXES, ImageFiles, find_images
from flatten_transformer.data.source import Source, Split, split_off


def open_images(root: Path | None, val_share: float) -> dict[Split, Source]:
    """Open all images in ``root/train`` and ``root/val``, or in ``root``, whatever their folders mean.

    Args:
        root: Data folder.
        val_share: Share held out for validation, drawn with a fixed seed, where there is no ``root/val``.

    Returns:
        Training and validation images, all of class 0; validation images serve as test images.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If ``root`` is missing, or holds fewer than two images.

    Example:
        >>> root = getfixture("tmp_path")
        >>> for name in "abcde":
        ...     (root / f"{name}.png").touch()
        >>> {split: len(images) for split, images in open_images(root, 0.2).items()}
        {'train': 4, 'val': 1, 'test': 1}
    """
    if root is None:
        raise ValueError("images need a folder: give --data.root")
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: check data.root")
    train, val = root / "train", root / "val"
    if train.is_dir() and val.is_dir():
        held: Source = _read(val, 1)
        return {"train": _read(train, 1), "val": held, "test": held}
    rest, held = split_off(_read(root, 2), val_share)
    return {"train": rest, "val": held, "test": held}


def _read(folder: Path, least: int) -> ImageFiles:
    files = find_images(folder)
    if len(files) < least:
        raise ValueError(
            f"{folder} holds {len(files) or 'no'} image{'' if len(files) == 1 else 's'} ({', '.join(SUFFIXES)}): "
            "give a folder with more, some of which are held out for validation"
        )
    return ImageFiles(files, [0] * len(files))
