"""Find the mask of each image of a split."""

# n images of a split.

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from pathlib import Path

from flatten_transformer.data.pairing import IMAGE_FOLDERS, partners
from flatten_transformer.utils.progress import track

MASK_FOLDERS = ("masks", "Masks", "mask", "labels", "annotations", "SegmentationClass")
_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")  # which keep the numbers of classes
_ENDINGS = ("", "_mask")
Pairs = list[tuple[Path, Path]]


def mask_pairs(images: Sequence[Path], root: Path, folders: Sequence[str] = MASK_FOLDERS) -> Pairs:
    """Return n pairs of image and mask; a mask that lies beside its image is no image itself.

    Args:
        images: Image files below ``root``.
        root: Data folder.
        folders: Names of folders of masks; a mask has the name of its image, or one that ends in ``_mask``.

    Raises:
        ValueError: If an image has no mask, or two images share one.

    Example:
        >>> root = getfixture("tmp_path")
        >>> for name in ("images/a.jpg", "masks/a.png"):
        ...     (root / name).parent.mkdir()
        ...     (root / name).touch()
        >>> [(image.name, mask.name) for image, mask in mask_pairs([root / "images" / "a.jpg"], root)]
        [('a.jpg', 'a.png')]
    """
    with track(images, "looking for the mask of {}".format, quick=True) as tracked:
        found = {image: _mask(image, root, folders) for image in tracked}
    masks = set(found.values())
    without = [image for image, mask in found.items() if mask is None and image not in masks]
    if without:
        raise ValueError(_missing(without, root, folders))
    pairs = [(image, mask) for image, mask in found.items() if mask is not None]
    owners: dict[Path, Path] = {}
    for image, mask in pairs:
        if owners.setdefault(mask, image) != image:
            raise ValueError(f"the images {owners[mask]} and {image.name} share the mask {mask}: rename one, and its mask")
    return pairs


def _mask(image: Path, root: Path, folders: Sequence[str]) -> Path | None:
    suffixes = (*_SUFFIXES, *(suffix.upper() for suffix in _SUFFIXES))
    names = [f"{image.stem}{ending}{suffix}" for ending in _ENDINGS for suffix in suffixes]
    return next((path for path in partners(image, root, folders, names) if path != image and path.is_file()), None)


def _missing(images: Sequence[Path], root: Path, folders: Sequence[str]) -> str:
    image = images[0]
    places = list(partners(image, root, folders, [f"{image.stem}.png"]))
    mask = next((place for place in places if place.parent.is_dir()), places[0])
    others = [path for path in sorted(mask.parent.glob(f"{glob.escape(mask.stem)}.*")) if path != image]
    more = f" and {len(images) - 1} more images" if len(images) > 1 else ""
    return f"the image {image}{more} has no mask {mask}: " + (
        f"save {others[0].name} as PNG" if others else "add it, or leave the image out"
    )


def image_roots(folders: Collection[Path]) -> list[Path]:
    """Return the folders that hold the images of all splits, given those of each."""
    return sorted({folder.parent if folder.parent.name in IMAGE_FOLDERS else folder for folder in folders})


def mask_roots(pairs: Pairs, root: Path) -> list[Path]:
    """Return the folders of masks, such as ``root/masks``, that the masks of pairs lie in."""
    roots = set()
    for _, mask in pairs:
        parts = mask.parent.relative_to(root).parts
        depth = next((position for position, part in enumerate(parts) if part in MASK_FOLDERS), len(parts) - 1)
        roots.add(root.joinpath(*parts[: depth + 1]))
    return sorted(roots)
