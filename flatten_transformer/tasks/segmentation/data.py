"""Data module of semantic segmentation: scenes, ADE20K, and folders of images and masks."""

# B batch, C channels.

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from flatten_transformer.data.mask_folder import MaskedImages, open_ade20k, open_mask_folder
from flatten_transformer.data.mask_numbers import check_mask_counts, count_masks
from flatten_transformer.data.module import DataModule
from flatten_transformer.data.preprocessing import channel_statistics
from flatten_transformer.data.reading import BadImageError, OnBadImage, Reading
from flatten_transformer.data.scenes import SCENES, write_scenes
from flatten_transformer.data.source import Split, check_val_share
from flatten_transformer.data.unused_files import unused_files
from flatten_transformer.tasks.segmentation.augmentation import Augmentation
from flatten_transformer.tasks.segmentation.preprocessing import SegmentationPreprocessing
from flatten_transformer.utils.suggest import did_you_mean

DataSet = Literal["scenes", "folder", "ade20k"]
_PATIENCE_S = 5.0  # spent on checking the masks of a split


class MaskedBatch(NamedTuple):
    """Images, class maps, and indices in the data set.

    In training, images and masks are tensors, ``[B, C, crop_size, crop_size]`` and ``[B, crop_size, crop_size]``; in
    evaluation they are lists of individual sizes, each mask in the size of its file.
    """

    images: Sequence[Tensor]
    masks: Sequence[Tensor]  # int64; IGNORED for pixels without a class
    indices: Sequence[int]


class MaskedSamples(Reading):
    """Images and masks as tensors, with their indices.

    Args:
        source: n images and masks.
        transform: :class:`Augmentation`, or for evaluation :class:`SegmentationPreprocessing`.
        in_chans: C, 1 for grey, 3 for colour.
        on_bad_image: As for :class:`Reading`.
    """

    def __init__(
        self, source: MaskedImages, transform: Augmentation | SegmentationPreprocessing, in_chans: int, on_bad_image: OnBadImage
    ) -> None:
        super().__init__(source, in_chans, on_bad_image)
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image, mask, index = self.read(index)
        return *self._tensors(image, mask), index

    def collate(self, samples: list[Any]) -> MaskedBatch:
        """Stack crops; return whole images and masks as lists."""
        images, masks, indices = zip(*samples, strict=True)
        if isinstance(self.transform, Augmentation):
            images, masks = torch.stack(images), torch.stack(masks)  # type: ignore[assignment]  # a tensor is a sequence
        return MaskedBatch(images, masks, indices)

    def _tensors(self, image: Image.Image, mask: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        if isinstance(self.transform, Augmentation):
            return self.transform(image, mask)
        return self.transform(image), mask.as_subclass(Tensor)


class SegmentationData(DataModule):
    """Images with segmentation masks, in batches of :class:`MaskedBatch`.

    Args:
        dataset: ``"scenes"``, synthetic digits on photographs, no download; ``"folder"``, images and masks; or ``"ade20k"``.
        root: Data folder. For ``"folder"``: ``root/images/``, ``root/masks/`` with a PNG of class numbers of the same name for
            each image, and ``root/classes.txt`` with one name per line or ``classes.json``, without which classes are
            numbered; in each ``train/``, ``val/`` and ``test/``, optional, or these above them. For ADE20K:
            ADEChallengeData2016. For the scenes: where they are written; None for runs/data/scenes.
        ignore_index: Mask value without a class, for ``"folder"``; None if there is none.
        mask_values: Mask value of each class in the order of ``classes.txt``, for ``"folder"``, such as ``[0, 255]`` for
            black-and-white masks; None for 0, 1 and so on.
        val_share: Share of the training images held out for validation, drawn with a fixed seed, if the folder has none.
        outside_links: Follow links that lead out of ``root``.
        in_chans: 1 for grey, 3 for colour; images are converted.
        short_side: Shorter side of resized images in pixels, proportions kept; None for no resizing.
        long_side: Limit of the longer side then; None for no limit.
        window: Side of the sliding window outside training, in pixels; None for whole images.
        stride: Stride of the window; None for two thirds of it.
        crop_size: Side of the training crop in pixels; None for 96 with the scenes, else 512.
        scale: Range of the random resize factor before the crop.
        max_share: Maximum share of one class in a crop; given up after ten attempts.
        hflip: Probability of a horizontal flip in training; keep 0 for digits.
        distortion: Jitter brightness, contrast, saturation and hue in training.
        **shared: Arguments of :class:`DataModule`.

    Raises:
        ValueError: If the data set is unknown or malformed, or a number is out of range.
        FileNotFoundError: If a folder is missing.

    Example:
        >>> data = SegmentationData("folder", root=getfixture("mask_folder"), crop_size=96, batch_size=2)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.images.shape, batch.masks.shape, data.num_classes
        (torch.Size([2, 3, 96, 96]), torch.Size([2, 96, 96]), 2)
    """

    counted = "masks that hold it"
    drop_last = True

    def __init__(
        self,
        dataset: DataSet = "scenes",
        *,
        root: str | Path | None = None,
        ignore_index: int | None = 255,
        mask_values: Sequence[int] | None = None,
        val_share: float = 0.2,
        outside_links: bool = False,
        in_chans: int = 3,
        short_side: int | None = None,
        long_side: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        crop_size: int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        max_share: float = 0.75,
        hflip: float = 0.0,
        distortion: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if dataset not in get_args(DataSet):
            raise ValueError(f"no data set {dataset!r}: {did_you_mean(dataset, get_args(DataSet))}")
        check_val_share(val_share)
        statistics = channel_statistics(in_chans, self.mean, self.std)
        self.preprocessing = SegmentationPreprocessing(in_chans, *statistics, short_side, long_side, window, stride)
        size = (96 if dataset == "scenes" else 512) if crop_size is None else crop_size
        self._augmentation = Augmentation(self.preprocessing, size, scale, max_share, hflip, distortion)
        folder = _root(dataset, root)
        if dataset == "scenes":
            write_scenes(folder)
        if dataset == "ade20k":
            if mask_values is not None:
                raise ValueError("mask_values serves the data set folder; ADE20K's masks have their own numbers: leave it out")
            opened = open_ade20k(folder, outside_links=outside_links)
        else:
            opened = open_mask_folder(folder, ignore_index, val_share, mask_values, outside_links=outside_links)
        self.class_names, self._sources = opened.class_names, opened.splits
        used = {file for source in opened.splits.values() for pair in source.pairs for file in pair}
        self.left_out = unused_files(opened.images, opened.masks, used)
        self._counts: dict[Split, list[int] | None] = {}

    def _open(self, split: Split) -> MaskedSamples:
        """Return the images and masks of a split, after checking the masks.

        Raises:
            ValueError: If the numbers in the masks do not match the class list.
        """
        self._check_masks(split)
        transform = self._augmentation if split == "train" else self.preprocessing
        return MaskedSamples(self._sources[split], transform, self.in_chans, self.on_bad_image)

    def _check_masks(self, split: Split) -> None:
        """Raise if the numbering of the masks of a split is implausible."""
        source, names = self._sources[split], self.class_names
        seen = count_masks(len(source), self._classes_or_none(source), len(names), _PATIENCE_S)
        complete = seen.masks == len(source)
        self._counts[split] = seen.holding.tolist() if complete else None
        where = f"the {split} masks, such as {source.pairs[0][1]},"
        check_mask_counts(where, seen, names, source.numbering, train=split == "train" and complete)
        if not complete:
            rank_zero_info(f"{seen.masks} of {len(source)} {split} masks were looked at, as there were {_PATIENCE_S:g} s for it")

    def _classes_or_none(self, source: MaskedImages) -> Callable[[int], NDArray[np.int64]]:
        """Return a reader of masks that gives an empty map for one to be skipped."""

        def read(index: int) -> NDArray[np.int64]:
            try:
                return source.classes(index)
            except (ValueError, OSError) as error:
                if self.on_bad_image == "skip":
                    return np.zeros(0, np.int64)
                raise BadImageError(f"{error}; or go on without it: --data.on_bad_image skip") from None

        return read

    def mask(self, split: Split, index: int) -> Tensor:
        """Return the class map of an image, ``[height, width]``; IGNORED for pixels without a class."""
        return self._sources[split][index][1].as_subclass(Tensor)

    def counts(self, split: Split) -> Sequence[int] | None:
        """Return how many masks of an open split hold each class; None if not all were checked in time."""
        return self._counts[split]


def _root(dataset: DataSet, root: str | Path | None) -> Path:
    if root is not None:
        return Path(root)
    if dataset == "scenes":
        return SCENES
    example = "ADEChallengeData2016" if dataset == "ade20k" else "my_images"
    raise ValueError(f"the data set {dataset!r} needs a folder: add --data.root, such as --data.root data/{example}")
