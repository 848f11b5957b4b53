import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from flatten_transformer.data.annotated import Annotated
from flatten_transformer.data.yolo import open_yolo
from tests.box_folders import boxes_of, write_yolo


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_yolo(tmp_path / "mine", {"train": 2, "val": 1})


def read(root: Path, split: Any = "train", **options: Any) -> Annotated:
    return open_yolo(root, **{"masks": False, **options}).splits[split].read()


def write(root: Path, text: str) -> None:
    (root / "labels" / "train" / "00.txt").write_text(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "has 4 numbers: write a class number and four shares of the image, centre x and y, width and height"),
        ("0 0.5 0.5 0.2 0.2 0.9", "has a sixth number: leave a score out"),
        ("0 0.1 0.1 0.2 0.2 0.9 0.3 0.1", "has 8 numbers"),
        ("0 0.5 x 0.2 0.2", "is '0 0.5 x 0.2 0.2', not numbers alone"),
        ("cat 0.5 0.5 0.2 0.2", "is 'cat 0.5 0.5 0.2 0.2', not numbers alone"),
        ("2 0.5 0.5 0.2 0.2", "is of class 2, but the classes are 0 … 1: name it, or correct the line"),
        ("-1 0.5 0.5 0.2 0.2", "is of class -1, but"),
        ("0.5 0.5 0.5 0.2 0.2", "is of class 0.5, but"),
        ("inf 0.5 0.5 0.2 0.2", "is of class inf, but"),
        ("0 32 24 10 10", "holds 32, which is no share of the image in 0 … 1"),
        ("0 0.5 0.5 -0.2 0.2", "holds -0.2, which is no share"),
        ("0 0.5 nan 0.2 0.2", "holds nan, which is no share"),
    ],
)
def test_a_line_that_is_none_is_named_with_its_file_and_number(line: str, message: str, root: Path) -> None:
    write(root, f"0 0.5 0.5 0.2 0.2\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"^[^\n]*labels/train/00\.txt, line 3 {re.escape(message)}[^\n]*$"):
        read(root)


def test_a_file_of_labels_that_is_no_text_is_named(root: Path) -> None:
    (root / "labels" / "train" / "00.txt").write_bytes(b"0 0.5 \xff")
    with pytest.raises(ValueError, match=r"00\.txt is not in UTF-8"):
        read(root)


def test_a_box_over_the_edge_is_cut_and_one_without_area_or_said_twice_is_left_out(root: Path) -> None:
    write(root, "0 0 0.5 0.5 1.005\n1 0.5 0.5 0 0.2\n0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\r\n")
    file = read(root).file
    assert [each.box for each in file.images[0].objects] == [
        (0.0, 0.0, 16.0, 48.0),
        pytest.approx((25.6, 19.2, 38.4, 28.8)),
    ]
    assert file.left_out == {
        "boxes without area in their image": ["labels/train/00.txt, line 2"],
        "lines that stand twice": ["labels/train/00.txt, line 4"],
    }


def test_a_polygon_has_a_box_and_a_mask(root: Path) -> None:
    for number in (0, 1):
        (root / "labels" / "train" / f"0{number}.txt").write_text("1 0.25 0.25 0.75 0.25 0.5 0.75\n")
    (one,) = read(root).file.images[0].objects
    assert (one.label, one.box) == (1, (16.0, 12.0, 48.0, 36.0))
    (one,) = read(root, masks=True).file.images[0].objects
    assert one.segmentation == [[16.0, 12.0, 48.0, 12.0, 32.0, 36.0]]
    with pytest.raises(ValueError, match=r"data\.yaml: labels/val/00\.txt, line 1 has no segmentation .*--data\.masks false"):
        read(root, "val", masks=True)


def test_an_image_without_a_file_of_labels_has_no_objects(root: Path) -> None:
    (root / "labels" / "train" / "00.txt").unlink()
    (root / "labels" / "train" / "09.txt").touch()
    found = open_yolo(root, masks=False)
    assert found.notes == ["1 of 2 train images have no file of labels: taken as images without objects"]
    file = found.splits["train"].read().file
    assert [len(image.objects) for image in file.images] == [0, 2]
    assert file.left_out == {"labels of no image": ["labels/train/09.txt"]}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("names: [cat, dog]", ["cat", "dog"]),
        ("names: ['yes', 1]\nnc: 2", ["yes", "1"]),
        ("names: {1: no, 0: yes}", ["yes", "no"]),
    ],
)
def test_names_are_taken_as_they_are_written(content: str, names: list[str], root: Path) -> None:
    (root / "data.yaml").write_text(content)
    assert read(root).file.class_names == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [cat, dog]\nnc: 3", "says nc: '3', but names 2 classes"),
        ("names: {0: cat, 2: dog}", "number the classes from 0, without a hole"),
        ("names: cat", "has no list of names, from 1 to 8192, got 'cat'"),
        ("names: []", "has no list of names"),
        ("names: [cat, cat]", "category 1 has the name of category 0, 'cat'"),
        ("names: [cat, [dog]]", "category 1 has no name"),
        ("names: [cat", "cannot be read as YAML"),
        ("- names", "holds no settings by name"),
        ("[" * 5000, "cannot be read as YAML"),
        ("names: [cat, dog]\ntrain: [[x]]", "has ['x'] under train: name a folder of images"),
    ],
)
def test_a_description_that_is_none_is_refused(content: str, message: str, root: Path) -> None:
    (root / "data.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"^[^\n]*data\.yaml[^\n]*{re.escape(message)}[^\n]*$"):
        open_yolo(root, masks=False)


def test_a_list_of_classes_names_them_too(root: Path) -> None:
    (root / "data.yaml").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"does not name the classes of its labels: add data\.yaml with names:, or classes"
    ):
        open_yolo(root, masks=False)
    (root / "labels" / "classes.txt").write_text("tiger\nwolf\n")
    assert read(root).file.class_names == ["tiger", "wolf"]
    (root / "classes.txt").write_text("one\n")
    for path in (root / "labels").rglob("0*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    assert read(root).file.class_names == ["one"]


def test_the_description_may_name_folders_lists_and_other_machines(root: Path) -> None:
    (root / "images" / "train").rename(root / "images" / "first")
    (root / "labels" / "train").rename(root / "labels" / "first")
    (root / "images" / "listed.txt").write_text("./val/00.jpg\n/home/somebody/mine/images/first/01.jpg\n")
    (root / "data.yaml").write_text("names: [cat, dog]\npath: /elsewhere\ntrain: [images/first]\nval: images/listed.txt\n")
    found = open_yolo(root, masks=False)
    assert [image.file_name for image in found.splits["val"].read().file.images] == ["images/val/00.jpg"]
    assert found.notes == ["1 val images are training images too: not among those to judge by"]
    (root / "images" / "listed.txt").write_text("\n../../secret.jpg\n")
    with pytest.raises(ValueError, match=r"listed\.txt, line 2: there is no image '../../secret\.jpg' in .*mine"):
        open_yolo(root, masks=False)


def test_places_may_be_absolute_or_lead_out_and_in_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    (root / "listed.txt").write_text(f"../{root.name}/images/val/00.jpg\n{root}/images/train/01.jpg\n")
    (root / "data.yaml").write_text(f"names: [cat, dog]\npath: ../{root.name}\ntrain: [{root}/images/train]\nval: listed.txt\n")
    splits = open_yolo(Path(), masks=False).splits
    assert [image.file_name for image in splits["val"].read().file.images] == ["images/val/00.jpg"]
    assert [len(image.objects) for image in splits["train"].read().file.images] == [1, 2]


def test_labels_may_lie_beside_their_images(tmp_path: Path) -> None:
    made, root = write_yolo(tmp_path / "made", {"": 2}), tmp_path / "mine"
    root.mkdir()
    for path in made.rglob("0*"):
        shutil.copy(path, root)
    (root / "classes.txt").write_text("cat\ndog\n")
    assert [len(image.objects) for image in read(root).file.images] == [len(boxes_of(number)) for number in range(2)]


def test_a_file_given_by_name_is_the_description(root: Path) -> None:
    (root / "data.yaml").rename(root / "mine.yaml")
    from flatten_transformer.data.box_folder import open_box_folder

    assert len(open_box_folder(root / "mine.yaml", masks=False).splits["train"].read().file.images) == 2


def test_nothing_outside_is_read_and_no_pipe_is_opened(root: Path, tmp_path: Path) -> None:
    label = root / "labels" / "train" / "00.txt"
    label.rename(tmp_path / "secret.txt")
    label.symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match=r"00\.txt leads out of its data set, to .*secret\.txt: .*--data\.outside_links true"):
        read(root)
    assert len(read(root, links=None).file.images[0].objects) == 1
    label.unlink()
    os.mkfifo(label)
    assert [len(image.objects) for image in read(root).file.images] == [0, 2]


def test_two_images_cannot_share_their_labels(root: Path) -> None:
    shutil.copy(root / "images" / "train" / "00.jpg", root / "images" / "train" / "00.jpeg")
    with pytest.raises(ValueError, match=r"the images .*00\.jpeg and 00\.jpg share the labels .*00\.txt: rename one"):
        open_yolo(root, masks=False)
