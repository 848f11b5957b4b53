"""Boxes of the images of a split, whatever format they come from, as those of a COCO file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from flatten_transformer.data.coco import CROWDS, CocoFile, split_off_images, to_coco
from flatten_transformer.data.image_files import image_size
from flatten_transformer.data.source import Split
from flatten_transformer.utils.progress import track

UNREADABLE = "images that cannot be read"


class Annotated(NamedTuple):
    """The annotations of a split and the folder that their file names start from."""

    file: CocoFile
    folder: Path
    links: Sequence[Path] = ()  # further folders that links among the images may lead to


class BoxSplit(NamedTuple):
    """A split that is read when it is needed, and once."""

    likely: Path  # the folder of its images, or of more
    read: Callable[[], Annotated]


class BoxDataSet(NamedTuple):
    """The splits of a data set, and lines to be told to the user."""

    splits: dict[Split, BoxSplit]
    notes: list[str]


def box_split(likely: Path, read: Callable[[], Annotated]) -> BoxSplit:
    """Return a split that is read once."""
    return BoxSplit(likely, cache(read))


def with_validation(splits: dict[Split, BoxSplit], share: float) -> dict[Split, BoxSplit]:
    """Return all three splits: a share of the training images for validation, and its images for the test, where they lack.

    Args:
        splits: At least ``"train"``.
        share: Share between 0 and 1, drawn with a fixed seed.
    """
    train, val = splits["train"], splits.get("val")
    if val is None:
        halves = cache(partial(_halves, train, share))
        val = BoxSplit(train.likely, lambda: halves()[1])
        train = BoxSplit(train.likely, lambda: halves()[0])
    return {"train": train, "val": val, "test": splits.get("test", val)}


def _halves(split: BoxSplit, share: float) -> tuple[Annotated, Annotated]:
    whole = split.read()
    kept, held_out = split_off_images(whole.file, share)
    return whole._replace(file=kept), whole._replace(file=held_out)


class Conversion:
    """Collects images and boxes of another format, and makes a COCO file of them.

    Args:
        root: Data folder, from which the images are named.
        path: Where the annotations are, for messages.
        class_names: Names of the classes, number 0 first.
    """

    def __init__(self, root: Path, path: Path, class_names: Sequence[str]) -> None:
        self.root = root
        self.path = path
        self.categories = [{"id": number, "name": name} for number, name in enumerate(class_names)]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.labels: list[str] = []
        self.left_out: dict[str, list[str]] = {}

    def add_image(self, file: Path, width: int, height: int) -> None:
        """Add an image; the boxes that follow are on it."""
        name = file.relative_to(self.root).as_posix()
        self.images.append({"id": len(self.images) + 1, "file_name": name, "width": width, "height": height})

    def add_box(
        self,
        category: int,
        corners: Sequence[float],
        label: str,
        *,
        polygon: Sequence[float] | None = None,
        ignored: bool = False,
    ) -> None:
        """Add a box to the last image.

        Args:
            category: Class number.
            corners: Left, top, right and bottom in pixels.
            label: Where it stands, such as ``"a.txt, line 3"``.
            polygon: Outline in pixels, x and y in turn.
            ignored: Neither learned from nor judged, like a crowd.
        """
        left, top, right, bottom = corners
        numbers = {"id": len(self.labels), "image_id": len(self.images), "category_id": category, "iscrowd": int(ignored)}
        box = {"bbox": [left, top, right - left, bottom - top], "segmentation": None if polygon is None else [list(polygon)]}
        self.annotations.append(numbers | box)
        self.labels.append(label)

    def leave_out(self, reason: str, name: str) -> None:
        """Count something that is not used."""
        self.left_out.setdefault(reason, []).append(name)

    def build(self, *, masks: bool, ignored: str = CROWDS) -> CocoFile:
        """Return the annotations, checked entry by entry.

        Args:
            masks: Every object must have a polygon.
            ignored: What ignored objects are called among those left out.

        Raises:
            ValueError: If there is no image, or an entry is malformed.
        """
        if not self.images:
            raise ValueError(f"{self.path}: there is no image that can be read: check data.root")
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        file = to_coco(self.path, content, masks=masks, label=lambda identity: self.labels[identity])
        left_out = {ignored if reason == CROWDS else reason: names for reason, names in file.left_out.items()}
        file.left_out.clear()
        file.left_out.update({**left_out, **self.left_out})
        return file


def measured(files: Iterable[Path], *, skip: bool) -> list[tuple[Path, tuple[int, int] | None]]:
    """Return image files with their width and height, upright; None for one that cannot be read and is to be skipped.

    Args:
        files: Image files.
        skip: Do not raise on one that cannot be read.

    Raises:
        ValueError: If an image cannot be read.
    """
    with track(list(files), "size of {}".format, quick=True) as tracked:
        return [(file, _size(file, skip)) for file in tracked]


def _size(file: Path, skip: bool) -> tuple[int, int] | None:
    try:
        return image_size(file)
    except (ValueError, OSError) as error:
        if skip:
            return None
        raise ValueError(f"{error}; or go on without it: --data.on_bad_image skip") from None
