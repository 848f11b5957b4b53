"""Data module of detection: any data set in COCO's format."""

# B images of a batch, C channels.

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torchvision.transforms import v2

from flatten_transformer.data.coco import CocoFile, CocoImage, read_coco
from flatten_transformer.data.image_folder import find_images
from flatten_transformer.data.module import DataModule
from flatten_transformer.data.preprocessing import channel_statistics
from flatten_transformer.data.scenes import SCENES, write_scenes
from flatten_transformer.data.source import LeftOut, Split, check_probabilities
from flatten_transformer.tasks.detection.coco_images import CocoImages, CocoSource
from flatten_transformer.tasks.detection.preprocessing import DetectionPreprocessing

SIZES = tuple(range(480, 801, 32))


class CocoData(DataModule):
    """Images with boxes and masks: batches are lists of images ``[C, height, width]`` and targets, and indices ``[B]``.

    The indices of the images in their file serve messages.

    Args:
        dataset: ``"coco"``, any data set in its format, or ``"scenes"``, synthetic digits on photographs, no download.
        root: Data folder, in COCO's layout: ``train2017/``, ``val2017/``, ``annotations/instances_train2017.json`` and
            ``…_val2017.json``. For the scenes, where they are written, by default runs/scenes. Overridden by:
        train_images: Training images.
        train_annotations: Their annotations, a JSON file in COCO's format.
        val_images: Validation images.
        val_annotations: Their annotations.
        test_images: Test images; by default the validation images.
        test_annotations: Their annotations.
        masks: Train on masks; if False, the files need none.
        empty_images: Train on images without objects too, unlike COCO's baselines.
        outside_links: Follow image links that lead out of their folder and ``root``.
        in_chans: 1 for grey, 3 for colour; images are converted.
        sizes: Sizes of the shorter side in training, drawn at random; in evaluation, see ``model_args``.
        max_size: Limit of the longer side in training, in pixels.
        hflip: Probability of a horizontal flip in training.
        **shared: Arguments of :class:`DataModule`.

    Raises:
        ValueError: If an annotation file is malformed, or a number is out of range.
        FileNotFoundError: If a file or folder is missing.
    """

    counted = "objects"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        dataset: Literal["coco", "scenes"] = "coco",
        train_images: str | Path | None = None,
        train_annotations: str | Path | None = None,
        val_images: str | Path | None = None,
        val_annotations: str | Path | None = None,
        test_images: str | Path | None = None,
        test_annotations: str | Path | None = None,
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
        if not sizes or min(sizes) < 1 or max(sizes) > max_size:
            raise ValueError(f"sizes must hold one or more from 1 to max_size, got {list(sizes)} and max_size {max_size}")
        check_probabilities(hflip=hflip)
        if (test_images is None) != (test_annotations is None):
            raise ValueError("test_images and test_annotations belong together: give both, or neither to test on the val images")
        self._places: dict[Split, tuple[Path, Path]]
        if dataset == "scenes":
            self._places = _scenes(Path(root or SCENES))
        else:
            self._places = {
                "train": _place("train", root, train_images, train_annotations),
                "val": _place("val", root, val_images, val_annotations),
            }
            self._places["test"] = _place("test", None, test_images, test_annotations) if test_images else self._places["val"]
        self.masks = masks
        self.empty_images = empty_images
        self._links = None if outside_links else [Path(root)] if root else []
        self.preprocessing = DetectionPreprocessing(in_chans, *channel_statistics(in_chans, self.mean, self.std))
        # not antialiased, like the detector's resize in evaluation
        resize = v2.RandomShortestSize(list(sizes), max_size, antialias=False)
        self._augment = v2.Compose([v2.RandomHorizontalFlip(hflip), resize])
        self._files: dict[Path, CocoFile] = {}
        val = self._read("val")  # the smaller file
        self.class_names, self.category_ids = val.class_names, val.category_ids

    def setup(self, stage: str) -> None:
        """Open the splits that ``stage`` (fit, validate, test) needs."""
        super().setup(stage)
        self.left_out = [*self._left_out_entries(), *self._left_out_images()]

    def _open(self, split: Split) -> CocoImages:
        """Return the images of a split with their targets."""
        train, file, folder = split == "train", self._read(split), self._places[split][0]
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder} for the images of {file.path}: check data.root, or data.{split}_images")
        source = CocoSource(file, folder, empty_images=self.empty_images or not train, links=self._links)
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
        files = {dataset.file.path: dataset.file for dataset in self._datasets.values()}
        return [
            LeftOut(reason, [f"{path}: {name}" for name in names])
            for path, file in files.items()
            for reason, names in sorted(file.left_out.items())
        ]

    def _left_out_images(self) -> list[LeftOut]:
        """Return the images in the folders of the open splits that no annotation file lists."""
        loose: list[str] = []
        for folder in {self._places[split][0] for split in self._datasets}:
            files = [self._read(split) for split, (other, _) in self._places.items() if other == folder]
            listed = {os.path.normpath(folder / entry["file_name"]) for file in files for entry in file.truth["images"]}
            loose += [str(path) for path in find_images(folder) if os.path.normpath(path) not in listed]
        return [LeftOut("images that no annotation file lists", loose)] if loose else []

    def _read(self, split: Split) -> CocoFile:
        path = self._places[split][1]
        if path not in self._files:
            self._files[path] = read_coco(path, masks=self.masks)
        file, val = self._files[path], self._files[self._places["val"][1]]
        for own, other in ((file, val), (val, file)):
            classes = dict(zip(other.category_ids, other.class_names, strict=True))
            for category, name in zip(own.category_ids, own.class_names, strict=True):
                if classes.get(category) != name:
                    raise ValueError(
                        f"{own.path} has category {category}, {name!r}, which {other.path} lacks: list the same in both"
                    )
        return file


def _place(split: Split, root: str | Path | None, images: str | Path | None, annotations: str | Path | None) -> tuple[Path, Path]:
    """Return the image folder and annotation file of a split."""
    if root is None and (images is None or annotations is None):
        raise ValueError(f"where are the {split} images? Set data.root, or data.{split}_images and data.{split}_annotations")
    folder = Path(root or "")
    default = folder / f"{split}2017", folder / "annotations" / f"instances_{split}2017.json"
    return Path(images or default[0]), Path(annotations or default[1])


def _scenes(root: Path) -> dict[Split, tuple[Path, Path]]:
    """Write the scenes unless they exist; return the image folder and annotation file of each split."""
    write_scenes(root)
    splits: tuple[Split, ...] = ("train", "val", "test")
    return {split: (root / "images" / split, root / "annotations" / f"instances_{split}.json") for split in splits}
