"""Reading a large data set says how far it is; a small one says nothing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatten_transformer.data import coco_json
from flatten_transformer.data.box_folder import open_box_folder
from flatten_transformer.data.image_folder import find_images, open_folder
from flatten_transformer.data.mask_folder import open_mask_folder
from flatten_transformer.data.shards import open_shards
from flatten_transformer.utils import progress
from tests.box_folders import WRITERS
from tests.data.test_shards import write_shards
from tests.fixtures import DrawFolder

COUNTS = {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1}
BOXES = {
    "coco": ("annotations of",),
    "yolo": ("labels of", "looking for", "size of"),
    "voc": ("reading", "looking for", "size of"),
}


@pytest.fixture(params=[False, True], ids=["small", "large"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Open a data set, as if that took long, and check what is told meanwhile; or at once, and check that nothing is."""
    if request.param:
        monkeypatch.setattr(progress, "_QUIET_S", 0.0)

    def read(open_it: Callable[[], object], *told: str) -> None:
        open_it()
        printed = capsys.readouterr().err
        if request.param:
            lines = {line.partition(": ")[2].partition(": ")[2] for line in printed.splitlines()}
            assert all(any(line.startswith(words) for line in lines) for words in told), printed
        else:
            assert printed == ""

    return read


def test_folders_of_classes(draw_folder: DrawFolder, reading: Any) -> None:
    root = draw_folder(COUNTS)
    places = [f"class folder {root}/{place}" for place in ("train/cat", "val/dog")]
    reading(lambda: open_folder(root), *places, f"files that are there twice: {root}/train/cat/00.png")


def test_a_folder_of_images(draw_folder: DrawFolder, reading: Any) -> None:
    root = draw_folder(COUNTS)
    reading(lambda: find_images(root / "train" / "cat"), f"files in {root}/train/cat")
    reading(lambda: find_images(root), f"files in {root}", f"all files below {root}/val")


def test_shards(tmp_path: Path, reading: Any) -> None:
    write_shards(tmp_path)
    reading(lambda: open_shards(tmp_path), f"contents of {tmp_path}/pets-train-0000.tar")


def test_masks_with_and_without_names_of_classes(mask_folder: Path, reading: Any) -> None:
    image, mask = (os.path.join(mask_folder, kind, "train", f"0.{end}") for kind, end in (("images", "jpg"), ("masks", "png")))
    reading(lambda: open_mask_folder(mask_folder), f"looking for the mask of {image}")
    (mask_folder / "classes.txt").unlink()
    reading(lambda: open_mask_folder(mask_folder), f"numbers in {mask}")


@pytest.mark.parametrize("kind", WRITERS)
def test_boxes(kind: str, tmp_path: Path, reading: Any) -> None:
    root = WRITERS[kind](tmp_path / "mine", {"train": 2, "val": 2})

    def read_all() -> None:
        for split in open_box_folder(root, masks=False).splits.values():
            split.read()

    reading(read_all, *BOXES[kind], "packing the annotations")


def test_a_large_file_is_named_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "boxes.json"
    file.write_text('{"images": [1], "annotations": [], "categories": [1]}' + " " * 2**20)
    coco_json.load_coco(file)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(coco_json, "_LARGE", 2**20)
    coco_json.load_coco(file)
    assert capsys.readouterr().err == f"flatten: reading {file}, 1 MiB\n"
