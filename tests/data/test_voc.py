import os
import re
from pathlib import Path
from typing import Any

import pytest

from flatten_transformer.data.annotated import Annotated
from flatten_transformer.data.voc import open_voc
from tests.box_folders import boxes_of, voc_object, write_voc, write_voc_xml


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "mine", {"train": 2, "val": 1})


def read(root: Path, split: Any = "train", **options: Any) -> Annotated:
    return open_voc(root, **{"masks": False, **options}).splits[split].read()


def write(root: Path, objects: str, width: int = 64, height: int = 48) -> None:
    write_voc_xml(root / "Annotations" / "00.xml", objects, width, height)


BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (f"<object>{BOX}</object>", "line 3: an object has no name"),
        ("<object><name>cat</name></object>", "line 3: an object has no xmin in <bndbox>, got ''"),
        (f"\n<object><name>cat</name>{BOX.replace('<xmax>9', '<xmax>x')}</object>", "line 4: an object has no xmax in <bndbox>"),
        (f"<object><name>cat</name>{BOX.replace('<xmax>9', '<xmax>nan')}</object>", "got 'nan'"),
        (f"<object><name>cat</name>{BOX.replace('<xmax>9', '<xmax>1e400')}</object>", "got '1e400'"),
        (voc_object("cat", -0.5, -0.5, 0.9, 0.8), "line 3: a box lies within 0 … 1: write pixels, not shares"),
        ("<object>", "cannot be read as XML (mismatched tag: line 4"),
        ("<object>" * 40 + "</object>" * 40, "nested more than 32 deep at line 3"),
        ("&who;", "cannot be read as XML (undefined entity"),
    ],
)
def test_an_annotation_that_is_none_is_named_with_its_file_and_line(objects: str, message: str, root: Path) -> None:
    write(root, objects)
    with pytest.raises(ValueError, match=rf"^[^\n]*Annotations/00\.xml[^\n]*{re.escape(message)}[^\n]*$"):
        read(root)


@pytest.mark.parametrize(
    "document_type",
    [
        '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
        "<!DOCTYPE annotation>",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_before_any_entity(document_type: str, encoding: str, root: Path) -> None:
    path = root / "Annotations" / "00.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{document_type}{path.read_text()}'.encode(encoding))
    with pytest.raises(ValueError, match=r"00\.xml cannot be read as XML \(it declares a document type at line 1"):
        open_voc(root, masks=False)


@pytest.mark.parametrize(("content", "message"), [("", "no element found"), ("<a/>", "begins with <a>"), ("<annotation>", "XML")])
def test_another_file_is_no_annotation(content: str, message: str, root: Path) -> None:
    (root / "Annotations" / "00.xml").write_text(content)
    with pytest.raises(ValueError, match=rf"00\.xml[^\n]*{message}"):
        open_voc(root, masks=False)


def test_a_box_over_the_edge_is_cut_and_one_without_area_is_left_out(root: Path) -> None:
    write(root, "\n".join(voc_object("cat", *box) for box in [(-3, 2, 70, 50), (9, 9, 9, 20), (20, 9, 10, 20), (0, 0, 5, 6)]))
    file = read(root).file
    assert [each.box for each in file.images[0].objects] == [(0.0, 2.0, 64.0, 48.0), (0.0, 0.0, 5.0, 6.0)]
    assert file.left_out == {"boxes without area in their image": ["00.xml, line 4", "00.xml, line 5"]}


def test_a_difficult_object_is_neither_learned_nor_judged(root: Path) -> None:
    write(root, voc_object("cat", 1, 1, 9, 9) + voc_object("dog", 2, 2, 30, 30, "<difficult>1</difficult>"))
    file = read(root).file
    assert [each.label for each in file.images[0].objects] == [0]
    assert file.left_out == {"difficult objects": ["00.xml, line 3"]}
    assert [entry["iscrowd"] for entry in file.truth["annotations"] if entry["image_id"] == 1] == [0, 1]


def test_classes_are_all_that_occur_or_those_listed(root: Path) -> None:
    write(root, voc_object("zebra", 1, 1, 9, 9) + voc_object("ant", 1, 1, 9, 9))
    assert read(root, "val").file.class_names == ["ant", "cat", "dog", "zebra"]
    (root / "classes.txt").write_text("zebra\ndog\ncat\n")
    with pytest.raises(ValueError, match=r"00\.xml, line 3: the class 'ant' is not in classes\.txt: add it to"):
        open_voc(root, masks=False)
    (root / "classes.txt").write_text("zebra\ndog\ncat\nant\n")
    assert [each.label for each in read(root).file.images[0].objects] == [0, 3]


def test_classes_that_look_the_same_are_refused(root: Path) -> None:
    write(root, voc_object("Dog", 1, 1, 9, 9))
    with pytest.raises(ValueError, match=r"xml, line \d: the class 'dog' is not quite 'Dog', in other files: spell them alike"):
        open_voc(root, masks=False)


@pytest.mark.parametrize(("width", "height"), [(48, 64), (640, 480)])
def test_another_size_than_the_images_is_refused(width: int, height: int, root: Path) -> None:
    write(root, voc_object("cat", 1, 1, 9, 9), width, height)
    with pytest.raises(ValueError, match=rf"00\.xml says {width} × {height} pixels \(width × height\), but 00\.jpg has 64 × 48"):
        read(root)


@pytest.mark.parametrize(("width", "works"), [("0", True), ("", True), ("-3", False), ("x", False), ("9" * 10, False)])
def test_a_size_that_is_not_said_is_that_of_the_image(width: str, works: bool, root: Path) -> None:
    path = root / "Annotations" / "00.xml"
    path.write_text(path.read_text().replace("<width>64", f"<width>{width}"))
    if works:
        assert (read(root).file.images[0].width, read(root).file.images[0].height) == (64, 48)
    else:
        with pytest.raises(ValueError, match=r"00\.xml says the width"):
            open_voc(root, masks=False)


def test_an_image_without_an_annotation_has_no_objects(root: Path) -> None:
    (root / "Annotations" / "00.xml").rename(root / "Annotations" / "77.xml")
    found = open_voc(root, masks=False)
    assert found.notes == ["1 of 2 train images have no XML file: taken as images without objects"]
    file = found.splits["train"].read().file
    assert [len(image.objects) for image in file.images] == [0, len(boxes_of(1))]
    assert file.left_out == {"annotations of no image": ["Annotations/77.xml"]}


def test_there_are_no_masks(root: Path) -> None:
    with pytest.raises(ValueError, match=r"Pascal VOC's format, which has boxes and no masks: add --data\.masks false"):
        open_voc(root, masks=True)


def test_lists_say_the_splits(root: Path) -> None:
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").unlink()
    (lists / "val.txt").rename(lists / "test.txt")
    (lists / "trainval.txt").write_text("01\n00  1\n")
    found = open_voc(root, masks=False).splits
    assert {split: [image.file_name for image in each.read().file.images] for split, each in found.items()} == {
        "train": ["JPEGImages/01.jpg", "JPEGImages/00.jpg"],
        "test": ["JPEGImages/02.jpg"],
    }
    (lists / "test.txt").write_text("02\n\n44\n")
    with pytest.raises(ValueError, match=r"test\.txt, line 3: there is no image '44': add it, or remove the line"):
        open_voc(root, masks=False)


def test_without_one_object_there_are_no_classes(root: Path) -> None:
    for path in (root / "Annotations").iterdir():
        write_voc_xml(path, "", 0, 0)
    with pytest.raises(ValueError, match=r"holds no object in 3 XML files of images"):
        open_voc(root, masks=False)


def test_nothing_outside_is_read_and_no_pipe_is_opened(root: Path, tmp_path: Path) -> None:
    path = root / "Annotations" / "00.xml"
    path.rename(tmp_path / "secret.xml")
    path.symlink_to(tmp_path / "secret.xml")
    with pytest.raises(ValueError, match=r"00\.xml leads out of its data set, to .*secret\.xml: .*--data\.outside_links true"):
        open_voc(root, masks=False)
    path.unlink()
    os.mkfifo(path)
    assert len(read(root).file.images[0].objects) == 0
