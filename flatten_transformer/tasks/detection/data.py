"""Data module of detection: images with boxes in COCO's, YOLO's or Pascal VOC's format."""

# B images of a batch, C channels.

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_info
from torchvision.transforms import v2

from flatten_transformer.data.annotated import UNREADABLE, Annotated, BoxDataSet, BoxSplit, with_validation
from flatten_transformer.data.box_folder import open_box_folder
from flatten_transformer.data.coco import CocoFile, CocoImage
from flatten_transformer.data.coco_folder import coco_split, open_coco
from flatten_transformer.data.image_folder import find_images
from flatten_transformer.data.module import DataModule
from flatten_transformer.data.preprocessing import channel_statistics
from flatten_transformer.data.scenes import SCENES, write_scenes
from flatten_transformer.data.source import LeftOut, Split, check_probabilities, check_val_share
from flatten_transformer.tasks.detection.coco_images import CocoImages, CocoSource
from flatten_transformer.tasks.detection.preprocessing import DetectionPreprocessing
from flatten_transformer.utils.suggest import did_you_mean

DataSet = Literal["coco", "yolo", "voc", "folder", "scenes"]
SIZES = tuple(range(480, 801, 32))


class CocoData(DataModule):
    """Images with boxes and masks: batches are lists of images ``[C, height, width]`` and targets, and indices ``[B]``.

    The indices of the images in their file serve messages.

    Args:
        dataset: ``"coco"``, any data set in COCO's format; ``"yolo"``, in YOLO's; ``"voc"``, in Pascal VOC's; ``"folder"``, in
            whichever of the three it is; or ``"scenes"``, synthetic digits on photographs, no download.
        root: Data folder. For COCO: ``annotations/`` with a file for each split, or one for each in its folder, or one
            alone, and the images, as in ``train2017/``, ``images/train/``, ``images/``. For YOLO: ``images/`` and
            ``labels/``, or ``train/images/`` …, and ``data.yaml`` or ``classes.txt``. For Pascal VOC: ``JPEGImages/`` and
            ``Annotations/``. For the scenes, where they are written, by default runs/data/scenes. Overridden by, for COCO:
        train_images: Training images.
        train_annotations: Their annotations, a JSON file in COCO's format.
        val_images: Validation images.
        val_annotations: Their annotations.
        test_images: Test images; by default those in ``root``, or else the validation images.
        test_annotations: Their annotations.
        val_share: Share of the training images held out for validation, drawn with a fixed seed, if the data set has no
            validation split.
        masks: Train on masks; if False, the files need none.
        empty_images: Train on images without objects too, unlike COCO's baselines.
        outside_links: Follow image links that lead out of their folder and ``root``.
        in_chans: 1 for grey, 3 for colour; images are converted.
        sizes: Sizes of the shorter side in training, drawn at random; in evaluation, see ``model_args``.
        max_size: Limit of the longer side in training, in pixels.
        hflip: Probability of a horizontal flip in training.
        **shared: Arguments of :class:`DataModule`.

    Raises:
        ValueError: If a file is malformed, ``root`` is in no known format, or a number is out of range.
        FileNotFoundError: If a file or folder is missing.
    """

    counted = "objects"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        dataset: DataSet = "coco",
        train_images: str | Path | None = None,
        train_annotations: str | Path | None = None,
        val_images: str | Path | None = None,
        val_annotations: str | Path | None = None,
        test_images: str | Path | None = None,
        test_annotations: str | Path | None = None,
        val_share: float = 0.2,
        masks: bool = True,
        empty_images: bool = True,
        outside_links: bool = False,
        in_chans: int = 3,
        sizes: Sequence[int] = SIZES,
        max_size: int = 1333,
        hflip: float = 0.5,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if dataset not in get_args(DataSet):
            raise ValueError(f"no data set {dataset!r}: {did_you_mean(dataset, get_args(DataSet))}")
        if not sizes or min(sizes) < 1 or max(sizes) > max_size:
            raise ValueError(f"sizes must hold one or more from 1 to max_size, got {list(sizes)} and max_size {max_size}")
        check_probabilities(hflip=hflip)
        check_val_share(val_share)
        if (test_images is None) != (test_annotations is None):
            raise ValueError("test_images and test_annotations belong together: give both, or neither to test on the val images")
        self.masks = masks
        self.empty_images = empty_images
        self._links = None if outside_links else [Path(root)] if root else []
        self.preprocessing = DetectionPreprocessing(in_chans, *channel_statistics(in_chans, self.mean, self.std))
        # not antialiased, like the detector's resize in evaluation
        resize = v2.RandomShortestSize(list(sizes), max_size, antialias=False)
        self._augment = v2.Compose([v2.RandomHorizontalFlip(hflip), resize])
        images: dict[Split, Path] = _given(train_images, val_images, test_images)
        annotations: dict[Split, Path] = _given(train_annotations, val_annotations, test_annotations)
        found = self._data_set(dataset, None if root is None else Path(root), images, annotations)
        for note in found.notes:
            rank_zero_info(note)
        self._splits = with_validation(found.splits, val_share)
        val = self._read("val").file  # the smaller file
        self.class_names, self.category_ids = val.class_names, val.category_ids

    def _data_set(
        self, dataset: DataSet, root: Path | None, images: dict[Split, Path], annotations: dict[Split, Path]
    ) -> BoxDataSet:
        """Return the splits of a data set, read on first use."""
        if dataset == "scenes":
            return BoxDataSet(_scenes(root or SCENES, self.masks), [])
        if dataset == "coco":
            return BoxDataSet(open_coco(root, masks=self.masks, images=images, annotations=annotations), [])
        if images or annotations:
            raise ValueError(
                f"images and annotations of a split are named for the data set coco, not {dataset}: set data.root alone"
            )
        if root is None:
            raise ValueError(f"the data set {dataset!r} needs a folder: add --data.root, such as --data.root my_images/")
        skip = self.on_bad_image == "skip"
        return open_box_folder(root, None if dataset == "folder" else dataset, masks=self.masks, skip=skip, links=self._links)

    def setup(self, stage: str) -> None:
        """Open the splits that ``stage`` (fit, validate, test) needs."""
        super().setup(stage)
        self.left_out = [*self._left_out_entries(), *self._left_out_images()]

    def _open(self, split: Split) -> CocoImages:
        """Return the images of a split with their targets."""
        train, (file, folder, links) = split == "train", self._read(split)
        allowed = None if self._links is None else [*self._links, *links]
        source = CocoSource(file, folder, empty_images=self.empty_images or not train, links=allowed)
        # evaluation compares with the file, not with decoded masks
        return CocoImages(
            source,
            self.preprocessing,
            self._augment if train else None,
            masks=self.masks and train,
            on_bad_image=self.on_bad_image,
        )

    def truth(self, split: Split) -> CocoFile:
        """Return the annotation file of an open split."""
        return self._datasets[split].file

    def entry(self, split: Split, index: int) -> CocoImage:
        """Return the annotation entry of an image of an open split."""
        return self._datasets[split].source.entry(index)

    def counts(self, split: Split) -> list[int]:
        """Return the number of objects per class in an open split."""
        source = self._datasets[split].source
        counts = Counter(each.label for index in range(len(source)) for each in source.entry(index).objects)
        return [counts[label] for label in range(self.num_classes)]

    def _left_out_entries(self) -> list[LeftOut]:
        """Return the unused annotations of the open splits."""
        files = {
            id(dataset.file.left_out): dataset.file for dataset in self._datasets.values()
        }  # one where a share was split off
        return [
            LeftOut(reason, [f"{file.path}: {name}" for name in names])
            for file in files.values()
            for reason, names in sorted(file.left_out.items())
        ]

    def _left_out_images(self) -> list[LeftOut]:
        """Return the images in the folders of the open splits that no annotation file lists."""
        loose: list[str] = []
        for folder in {self._read(split).folder for split in self._datasets}:
            near = [split for split, (likely, _) in self._splits.items() if likely == folder or split in self._datasets]
            files = [each.file for each in map(self._read, near) if each.folder == folder]
            known = {entry["file_name"] for file in files for entry in file.truth["images"]}
            known |= {name for file in files for name in file.left_out.get(UNREADABLE, ())}
            listed = {os.path.normpath(folder / name) for name in known}
            loose += [str(path) for path in find_images(folder) if os.path.normpath(path) not in listed]
        return [LeftOut("images that no annotation file lists", loose)] if loose else []

    def _read(self, split: Split) -> Annotated:
        found, val = self._splits[split].read(), self._splits["val"].read().file
        for own, other in ((found.file, val), (val, found.file)):
            classes = dict(zip(other.category_ids, other.class_names, strict=True))
            for category, name in zip(own.category_ids, own.class_names, strict=True):
                if classes.get(category) != name:
                    raise ValueError(
                        f"{own.path} has category {category}, {name!r}, which {other.path} lacks: list the same in both"
                    )
        return found


def _given(train: str | Path | None, val: str | Path | None, test: str | Path | None) -> dict[Split, Path]:
    places: tuple[tuple[Split, str | Path | None], ...] = (("train", train), ("val", val), ("test", test))
    return {split: Path(place) for split, place in places if place is not None}


def _scenes(root: Path, masks: bool) -> dict[Split, BoxSplit]:
    """Write the scenes unless they exist; return their splits."""
    write_scenes(root)
    splits: tuple[Split, ...] = ("train", "val", "test")
    return {
        split: coco_split(
            split, root / "annotations" / f"instances_{split}.json", root, folder=root / "images" / split, masks=masks
        )
        for split in splits
    }
