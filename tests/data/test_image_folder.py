import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from flatten_transformer.data.image_folder import ImageFiles, find_images, open_folder
from flatten_transformer.data.source import Source, Splits
from flatten_transformer.data.walk import ImageFile, identities

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


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Train", "Test", "test"),
        ("training_set", "test_set", "test"),
        ("train2017", "val2017", "val"),
        ("01 Training images", "02 dev", "val"),
        ("imagesTrain", "imagesTest", "test"),
        ("trainval", "holdout", "test"),
    ],
)
def test_splits_are_known_by_whatever_they_are_usually_called(
    train: str, other: str, split: str, draw_folder: DrawFolder
) -> None:
    folder = open_folder(draw_folder({f"{train}/dog": 1, f"{train}/cat": 1, f"{other}/dog": 2}))._asdict()
    assert folder["class_names"] == ["cat", "dog"]
    assert {name: len(folder[name] or ()) for name in ("train", "val", "test")} == {"train": 2, "val": 0, "test": 0} | {split: 2}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train", "test"], "test is called like a split but has no class folders: put the images of each class"),
        (["Train", "VAL"], "Train is called like a split but has no class folders"),
        (["cat", "dog", "testing"], "testing is called like a split but has no class folders"),
        (["train", "test", "cat"], "test is called like a split but has no class folders"),
        (["train", "val/cat", "val/dog"], "train is called like a split but has no class folders"),
        (["train/cat", "train/dog", "val/cat", "valid/cat"], ".*/val and .*/valid are both the split val: merge them"),
        (["train/cat", "train/dog", "Train/cat"], ".*/Train and .*/train are both the split train"),
        (["pets_train", "pets_test"], "pets_test and pets_train in .* seem to be splits, not classes: rename them"),
        (["seg_train/cat", "seg_test/cat", "cow"], "seg_test and seg_train in .* seem to be splits"),
        (["fold1/cat", "fold1/dog", "fold2/cat"], "fold1 and fold2 in .* seem to be splits"),
        (["cat/train", "cat/test", "dog/train"], "cat has a folder test, whose images would be learned: splits belong above"),
        (["images/train/cat", "images/test/cat"], "images has: set data.root to that"),
        (["cat", "Cat", "dog"], "the classes 'Cat' and 'cat' in .* look the same: merge or rename them"),
        (["cat", "cat ", "dog"], "the classes 'cat' and 'cat ' in .* look the same"),
        (["caf\u00e9", "cafe\u0301"], r"the classes 'cafe\\u0301' and 'caf\\xe9' in .* look the same"),
        (["train/cat", "train/dog", "val/Cat"], "val has the class 'Cat', which is not quite 'cat', which .*train lacks"),
    ],
)
def test_what_may_be_a_split_or_a_class_is_refused(names: list[str], message: str, draw_folder: DrawFolder) -> None:
    with pytest.raises(ValueError, match=message):
        open_folder(draw_folder(dict.fromkeys(names, 1)))


def test_letters_in_both_cases_are_classes(draw_folder: DrawFolder) -> None:
    assert open_folder(draw_folder({"A": 1, "a": 1, "b": 1})).class_names == ["A", "a", "b"]


def left_out(folder: Splits) -> dict[str, list[str]]:
    return {reason: sorted(names) for reason, names in folder.left_out}


def test_whatever_is_left_out_is_told_with_its_reason(draw_folder: DrawFolder) -> None:
    root = draw_folder({"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/dog": 0, "test": 2, "more/cow": 1, "train/.git": 1})
    for name in ("train/cat/notes.txt", "train/dog/Thumbs.db", "README.md"):
        (root / name).touch()
    Image.new("L", (4, 4)).save(root / "train" / "loose.png")
    (root / "train" / "cat" / "gone.png").symlink_to("nowhere")
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    folder = open_folder(root)
    assert (len(folder.train), folder.test) == (2, None)
    assert left_out(folder) == {
        "no image that is read, by its suffix .txt": ["train/cat/notes.txt"],
        "no image that is read, by its suffix .md": ["README.md"],
        "hidden, or made by the system": ["train/.git/", "train/dog/Thumbs.db"],
        "image in no class folder": ["train/loose.png"],
        "link that leads nowhere": ["train/cat/gone.png"],
        "pipe or device": ["train/cat/pipe.png"],
        "class folder without images": ["val/dog/"],
        "in a split without class folders": ["test/00.png", "test/01.png"],
        "in a folder beside the splits": ["more/cow/00.png"],
    }


def test_what_this_library_wrote_is_no_class(draw_folder: DrawFolder) -> None:
    made = [
        "runs/pets/version_0",
        "runs/pets/version_1/x",
        "found",
        "seen/masks",
        "seen/overlays",
        "look",
        "runs/scenes/images/train",
    ]
    root = draw_folder({"cat": 1, "dog": 1} | dict.fromkeys(made, 1))
    for name in ("runs/pets/version_0/config.yaml", "runs/pets/version_1/metrics.csv", "found/detections.json"):
        (root / name).touch()
    for name in ("seen/classes.txt", "look/report.html", "look/numbers.json", "runs/scenes/scenes.json"):
        (root / name).touch()
    folder = open_folder(root)
    assert folder.class_names == ["cat", "dog"]
    ((reason, names),) = folder.left_out
    assert reason == "made by this library (runs, predictions, analyses)"
    assert sorted(names) == ["found/", "look/", "runs/pets/version_0/", "runs/pets/version_1/", "runs/scenes/", "seen/"]
    assert [path.relative_to(root).as_posix() for path in find_images(root)] == ["cat/00.png", "dog/00.png"]
    assert find_images(root / "found") == [root / "found" / "00.png"]  # asked for by name


def test_a_class_may_be_called_like_a_version(draw_folder: DrawFolder) -> None:
    assert open_folder(draw_folder({"version_1": 1, "version_2": 1})).class_names == ["version_1", "version_2"]


def test_links_lead_to_no_file_twice(draw_folder: DrawFolder) -> None:
    root = draw_folder({"train/cat": 2, "train/dog": 2, "val/cat": 2})
    cat = root / "train" / "cat"
    (cat / "cat").symlink_to(cat)
    (cat / "all").symlink_to(root)
    (cat / "again.png").symlink_to("00.png")
    os.link(cat / "01.png", cat / "hard.png")
    os.link(cat / "01.png", root / "val" / "cat" / "seen.png")
    folder = open_folder(root)
    assert (folder.train.labels, len(folder.val or ())) == ([0, 0, 1, 1], 2)
    assert left_out(folder) == {
        "link to a folder that is there already": ["train/cat/all/", "train/cat/cat/"],
        "file that counts already under another name": ["train/cat/again.png", "train/cat/hard.png"],
        "file that is among the training images too": ["val/cat/seen.png"],
    }


def test_classes_that_are_links_are_read(draw_folder: DrawFolder, tmp_path: Path) -> None:
    root = draw_folder({"cat": 2, "dog": 1})
    some = tmp_path / "some"
    some.mkdir()
    for name in ("cat", "dog"):
        (some / name).symlink_to(root / name)
    assert open_folder(some).train.labels == [0, 0, 1]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_in_two_classes_is_refused(link: Callable[[Path, Path], None], draw_folder: DrawFolder) -> None:
    root = draw_folder({"cat": 2, "dog": 1})
    link(root / "cat" / "00.png", root / "dog" / "also.png")
    with pytest.raises(ValueError, match=r"cat/00\.png and .*dog/also\.png are one file, which cannot be both 'cat' and 'dog'"):
        open_folder(root)


def test_images_to_judge_by_that_are_all_learned_are_refused(draw_folder: DrawFolder) -> None:
    root = draw_folder({"train/cat": 1, "train/dog": 1})
    (root / "val").symlink_to(root / "train")
    with pytest.raises(ValueError, match=r"val holds no image \(.*\) besides those of .*train: add some, or remove it"):
        open_folder(root)


def test_splits_that_only_judge_may_share_their_files(draw_folder: DrawFolder) -> None:
    root = draw_folder({"train/cat": 1, "train/dog": 1, "val/cat": 2})
    (root / "test").symlink_to(root / "val")
    folder = open_folder(root)
    assert (len(folder.val or ()), len(folder.test or ())) == (2, 2)


def test_a_file_system_that_gives_all_files_one_number_loses_none(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.touch()
    assert len(set(identities([ImageFile(path, 2**32 - 1) for path in paths]))) == 3
