import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flatten_transformer.data.box_folder import formats_of
from flatten_transformer.tasks.detection.data import CocoData
from tests.box_folders import NAMES, WRITERS, boxes_of, write_coco_export, write_voc, write_yolo


def opened(root: Path, stage: str = "fit", **options: Any) -> CocoData:
    data = CocoData(root, **{"dataset": "folder", "masks": False, "sizes": (48,), "max_size": 64, **options})
    data.setup(stage)
    return data


def found(data: CocoData, split: Any) -> dict[str, list[tuple[float, ...]]]:
    """Return the boxes on each image, rounded as their drawing was."""
    entries = [data.entry(split, index) for index in range(data.count(split))]
    return {
        Path(each.file_name).name: [(one.label, *(round(side, 3) for side in one.box)) for one in each.objects]
        for each in entries
    }


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train", "valid")])
def test_every_format_gives_the_same_boxes_and_classes(kind: str, train: str, val: str, tmp_path: Path) -> None:
    if kind == "voc" and val == "valid":
        val = "val"  # its lists have fixed names
    root = WRITERS[kind](tmp_path / "mine", {train: 4, val: 2})
    assert list(formats_of(root)) == [kind]
    data = opened(root)
    assert list(data.class_names) == list(NAMES)
    assert list(found(data, "train").values()) == [boxes_of(number) for number in range(4)]
    assert list(found(data, "val").values()) == [boxes_of(number) for number in range(2)]
    assert not data.left_out
    assert all(
        data.image("train", index).size == (data.entry("train", index).width, data.entry("train", index).height)
        for index in range(4)
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_without_validation_images_a_share_is_held_out_the_same_each_time(kind: str, tmp_path: Path) -> None:
    root = WRITERS[kind](tmp_path / "mine", {"": 10})
    parts = []
    for seed in (1, 2):
        data = opened(root, val_share=0.4)
        data.seed = seed
        data.setup("test")
        parts.append([found(data, split) for split in ("train", "val", "test")])
    (train, val, test), again = parts
    assert again == parts[0]
    assert (len(train), len(val), test) == (6, 4, val)
    assert {**train, **val} == {f"{number:02}.jpg": boxes_of(number) for number in range(10)}
    assert not data.left_out


@pytest.mark.parametrize("kind", WRITERS)
def test_a_test_split_is_found(kind: str, tmp_path: Path) -> None:
    data = opened(WRITERS[kind](tmp_path / "mine", {"train": 3, "val": 2, "test": 1}), "test")
    assert data.count("test") == 1


@pytest.mark.parametrize("writer", [write_yolo, write_voc])
def test_roboflow_has_a_folder_for_each_split(writer: Any, tmp_path: Path) -> None:
    whole, root = writer(tmp_path / "whole", {"": 3}), tmp_path / "mine"
    for split in ("train", "valid", "test"):
        for image in whole.rglob("*.jpg"):
            labels = next(path for path in whole.rglob(f"{image.stem}.*") if path.suffix in (".txt", ".xml"))
            beside = labels.suffix == ".xml"
            for path, folder in ((image, "images"), (labels, "labels")):
                place = root / split / ("" if beside else folder)
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
    if writer is write_yolo:
        (root / "data.yaml").write_text(
            "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: [cat, dog]\n"
        )
    data = opened(root)
    data.setup("test")
    assert [list(found(data, split).values()) for split in ("train", "val", "test")] == [[boxes_of(n) for n in range(3)]] * 3


def test_a_folder_in_no_format_is_answered_with_the_three(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "1.jpg")
    with pytest.raises(ValueError, match=r"has boxes in no format that is known: COCO \(.*YOLO \(.*Pascal VOC \([^\n]*$"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*elsewhere: check data\.root"):
        opened(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"the data set 'folder' needs a folder: add --data\.root"):
        CocoData(dataset="folder")
    with pytest.raises(ValueError, match=r"images and annotations of a split are named for the data set coco, not folder"):
        opened(tmp_path, train_images="x")
    with pytest.raises(ValueError, match="no data set 'yolov8': did you mean yolo"):
        opened(tmp_path, dataset="yolov8")


def test_a_folder_one_too_high_is_answered_with_the_right_one(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"": 2})
    with pytest.raises(ValueError, match=r"VOC2012 is in one of them: set data\.root to that"):
        opened(tmp_path / "VOCdevkit")


def test_of_two_formats_one_must_be_chosen(tmp_path: Path) -> None:
    root = write_yolo(write_coco_export(tmp_path / "mine", {"": 4}), {"": 4})
    message = "may be in the formats coco (_annotations.coco.json) and yolo (labels/00.txt): say which, --data.dataset coco or"
    with pytest.raises(ValueError, match=re.escape(message)):
        opened(root)
    assert len(found(opened(root, dataset="yolo"), "train")) == len(found(opened(root, dataset="coco"), "train")) == 2


def test_an_image_that_cannot_be_read_stops_or_is_left_out(tmp_path: Path) -> None:
    for root in (write_yolo(tmp_path / "yolo", {"train": 3, "val": 2}), write_voc(tmp_path / "voc", {"train": 3, "val": 2})):
        broken = next(path for path in sorted(root.rglob("*.jpg")) if path.stem == "01")
        broken.write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"01\.jpg is not an image.*--data\.on_bad_image skip"):
            opened(root)
        data = opened(root, on_bad_image="skip")
        assert list(found(data, "train")) == ["00.jpg", "02.jpg"]
        assert [(reason, [Path(name).name for name in names]) for reason, names in data.left_out] == [
            ("images that cannot be read", ["01.jpg"])
        ]


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_an_upright_photograph_has_the_boxes_of_its_upright_form(kind: str, tmp_path: Path) -> None:
    root = WRITERS[kind](tmp_path / "mine", {"train": 2, "val": 1})
    path = next(path for path in sorted(root.rglob("*.jpg")) if path.stem == "00")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    data = opened(root)
    assert data.image("train", 0).size == (data.entry("train", 0).width, data.entry("train", 0).height) == (64, 48)
    assert found(data, "train")["00.jpg"] == boxes_of(0)


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_names_of_any_letters_and_case_are_read(kind: str, tmp_path: Path) -> None:
    root = WRITERS[kind](tmp_path / "mine", {"": 4})
    for number, name in ((0, "Käfer 猫.JPG"), (1, "b\udcff.jpeg")):
        for path in list(root.rglob(f"0{number}.*")):
            path.rename(path.with_name(f"{Path(name).stem}{Path(name).suffix if path.suffix == '.jpg' else path.suffix}"))
    data = opened(root)
    both = found(data, "train") | found(data, "val")
    assert both["Käfer 猫.JPG"] == boxes_of(0)
    assert both["b\udcff.jpeg"] == boxes_of(1)


def test_each_class_is_learned_and_judged_where_two_images_have_it(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "mine", {"": 12})
    for number in range(12):
        (root / "labels" / f"{number:02}.txt").write_text(f"{int(number > 9)} 0.5 0.5 0.2 0.2\n" if number else "")
    data = opened(root)
    for split in ("train", "val"):
        assert {label for boxes in found(data, split).values() for label, *_ in boxes} == {0, 1}


def test_where_no_image_can_be_spared_it_is_said(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "mine", {"": 1})
    with pytest.raises(ValueError, match="no image can be kept for validation, as no two have objects of one class: add images"):
        opened(root)


@pytest.mark.parametrize(
    ("places", "image_folder"),
    [
        ("annotations.json", "images"),
        ("result.json", "photos"),
        ("annotations/instances_default.json", "images/default"),
        ("images/_annotations.coco.json", "images"),
    ],
)
def test_one_annotation_file_is_found_with_its_images(places: str, image_folder: str, tmp_path: Path) -> None:
    made = write_coco_export(tmp_path / "made", {"": 5})
    root = tmp_path / "mine"
    (root / places).parent.mkdir(parents=True)
    shutil.copytree(made / "images", root / image_folder, dirs_exist_ok=True)
    shutil.copy(made / "_annotations.coco.json", root / places)
    (root / "package.json").write_text(json.dumps({"name": "another thing"}))
    data = opened(root, dataset="coco")
    assert (data.count("train"), data.count("val")) == (3, 2)  # one of three images of cats, of two with a dog


def test_of_two_annotation_files_one_must_be_named(tmp_path: Path) -> None:
    root = write_coco_export(tmp_path / "mine", {"": 5})
    shutil.copy(root / "_annotations.coco.json", root / "more.json")
    with pytest.raises(
        ValueError, match=r"_annotations\.coco\.json and .*more\.json may both be meant: name one, --data\.train_"
    ):
        opened(root, dataset="coco")
    data = opened(root, dataset="coco", train_annotations=root / "more.json")
    assert data.count("train") == 3


def test_images_that_are_nowhere_are_named(tmp_path: Path) -> None:
    root = write_coco_export(tmp_path / "mine", {"": 5})
    shutil.rmtree(root / "images")
    with pytest.raises(FileNotFoundError, match=r"lists '00\.jpg', which is in no folder of .*mine: check data\.root, or name"):
        opened(root)
