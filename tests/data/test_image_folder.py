from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flatten_transformer.data.image_folder import ImageFiles, find_images, open_folder
from flatten_transformer.data.source import Source

DrawFolder = Callable[[Mapping[str, int]], Path]


def places(images: Source | None, root: Path) -> list[tuple[str, int]]:
    assert isinstance(images, ImageFiles)
    assert [images.name(index) for index in range(len(images))] == [str(file) for file in images.files]
    return [(file.relative_to(root).as_posix(), label) for file, label in zip(images.files, images.labels, strict=True)]


def test_each_split_has_its_images_and_the_classes_are_sorted(draw_folder: DrawFolder) -> None:
    root = draw_folder({"train/dog": 1, "train/cat": 2, "val/dog": 1, "test/cat": 1})
    folder = open_folder(root)
    assert folder.class_names == ["cat", "dog"]
    assert places(folder.train, root) == [("train/cat/00.png", 0), ("train/cat/01.png", 0), ("train/dog/00.png", 1)]
    assert places(folder.val, root) == [("val/dog/00.png", 1)]
    assert places(folder.test, root) == [("test/cat/00.png", 0)]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_the_validation_folder_has_three_names(val: str, draw_folder: DrawFolder) -> None:
    root = draw_folder({"train/dog": 1, "train/cat": 1, f"{val}/dog": 1})
    assert places(open_folder(root).val, root) == [(f"{val}/dog/00.png", 1)]


def test_a_folder_without_splits_is_all_training(draw_folder: DrawFolder) -> None:
    root = draw_folder({"dog": 1, "cat": 1, "test/dog": 1})
    folder = open_folder(root)
    assert places(folder.train, root) == [("cat/00.png", 0), ("dog/00.png", 1)]
    assert folder.val is None
    assert places(folder.test, root) == [("test/dog/00.png", 1)]


def test_a_class_may_be_called_like_a_split(draw_folder: DrawFolder) -> None:
    assert open_folder(draw_folder({"car": 1, "bus": 1, "train": 1})).class_names == ["bus", "car", "train"]


def test_images_are_found_in_folders_of_folders_but_not_where_they_are_hidden(draw_folder: DrawFolder) -> None:
    root = draw_folder({"cat/tabby/grey": 2, "cat/.cache": 1})
    (root / "cat" / "notes.txt").touch()
    assert [path.relative_to(root).as_posix() for path in find_images(root)] == [f"cat/tabby/grey/0{n}.png" for n in (0, 1)]


def test_images_are_sorted_in_whatever_order_they_were_made(tmp_path: Path) -> None:
    for name in ("b", "d", "a", "c"):
        (tmp_path / f"{name}.jpg").touch()
    assert [path.stem for path in find_images(tmp_path)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "images is empty: put the images of each class into a folder of its name, such as .*images/cat/1.jpg"),
        ({".git": 1}, "images has no class folders: put the images of each class"),
        ({"cat": 3}, "images has one class, 'cat', but it takes two to tell apart"),
        ({"cat": 3, "dog": 0}, r"class folder .*dog holds no image \(.bmp, .*\): add some, or remove it"),
        ({"train/cat": 1, "train/dog": 1, "val/cow": 1}, "val has the class 'cow', which .*train lacks: rename it, or add it"),
        ({"train/cat": 1, "train/dog": 1, "test/cow": 1}, "test has the class 'cow', which .*train lacks"),
        ({"train/cat": 1, "train/dog": 1, "val/cat": 0}, r"val holds no image \(.*\): add some, or remove it"),
        ({"cat": 1, "dog": 1, "val/cat": 1}, "images has class folders in val but none in train: put the images to learn from"),
    ],
    ids=["empty", "no classes", "one class", "empty class", "new in val", "new in test", "empty val", "no train"],
)
def test_a_folder_of_another_layout_is_refused(counts: dict[str, int], message: str, draw_folder: DrawFolder) -> None:
    with pytest.raises(ValueError, match=message):
        open_folder(draw_folder(counts))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*pets: check data\.root"):
        open_folder(tmp_path / "pets")
    (tmp_path / "pets").touch()
    with pytest.raises(ValueError, match=r"pets is a file: data\.root must be a folder"):
        open_folder(tmp_path / "pets")
