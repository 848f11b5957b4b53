import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from flatten_transformer.data.contents import Contents
from flatten_transformer.data.source import LeftOut
from flatten_transformer.tasks.classification.data import ImageData
from flatten_transformer.tasks.segmentation.data import SegmentationData


def shown(contents: Contents) -> list[str]:
    """What a log file gets."""
    file = io.StringIO()
    Console(file=file, width=80).print(contents.tables())
    return file.getvalue().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    return next(found for found in cells if found[0] == name)


def test_a_table_says_the_classes_and_the_images_of_each_split() -> None:
    lines = shown(Contents(["cat", "dog"], {"train": 1234, "val": 5}, {"train": [1000, 234], "val": [0, 5]}))
    assert row(lines, "cat") == ["cat", "1,000", "0"]
    assert row(lines, "dog") == ["dog", "234", "5"]
    assert row(lines, "images") == ["images", "1,234", "5"]
    assert lines[-1] == "Left out: nothing"


def test_of_a_thousand_classes_both_ends_and_the_extremes_are_shown() -> None:
    counts = [100] * 1000
    counts[400], counts[700] = 3, 900
    lines = shown(Contents([f"class {number}" for number in range(1000)], {"train": 100_703}, {"train": counts}))
    assert len(lines) < 30
    assert row(lines, "class 0") == ["class 0", "100"]
    assert row(lines, "class 999") == ["class 999", "100"]
    assert row(lines, "… 988 more classes …") == ["… 988 more classes …", ""]
    assert row(lines, "fewest: class 400") == ["fewest: class 400", "3"]
    assert row(lines, "most: class 700") == ["most: class 700", "900"]


def test_what_is_left_out_is_said_with_its_number_and_reason() -> None:
    left_out = [LeftOut("hidden", [f".{number}" for number in range(5)]), LeftOut("no image", ["a.txt"])]
    lines = shown(Contents(["a", "b"], {"val": 2}, {"val": [1, 1]}, left_out=left_out))
    assert row(lines, "5") == ["5", "hidden", ".0, .1, .2, …"]
    assert row(lines, "1") == ["1", "no image", "a.txt"]


def test_names_cannot_take_over_a_terminal_or_the_table() -> None:
    names = ["cat\x1b[2J", "[red]dog[/]", ":smile:", "x" * 300]
    lines = shown(Contents(names, {"val": 4}, {"val": [1, 1, 1, 1]}, left_out=[LeftOut("hidden", ["\x07[b]"])]))
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert all(part in text for part in (r"cat\x1b[2J", "[red]dog[/]", ":smile:", r"\x07[b]"))
    assert max(map(len, lines)) <= 80


def test_where_nobody_counted_the_classes_are_named() -> None:
    lines = shown(Contents(["sky", "ground"], {"train": 3, "val": 1}))
    assert row(lines, "sky, ground") == ["sky, ground", "", ""]
    many = "".join(shown(Contents([f"c{number}" for number in range(150)], {"train": 3})))
    assert "… 138 more …" in many


def test_a_data_module_tells_what_it_holds(tmp_path: Path, mask_folder: Path) -> None:
    for name, count in (("train/cat", 2), ("train/dog", 1), ("val/dog", 3)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / f"{number}.png")
    (tmp_path / "pets" / "notes.txt").touch()
    data = ImageData("folder", root=tmp_path / "pets")
    data.setup("fit")
    contents = data.contents("train", "val")
    assert contents.images == {"train": 3, "val": 3}
    assert contents.counts == {"train": [2, 1], "val": [0, 3]}
    assert contents.left_out == [LeftOut("no image that is read, by its suffix .txt", ["notes.txt"])]
    segmentation = SegmentationData("folder", root=mask_folder)
    segmentation.setup("fit")
    masks = segmentation.contents("train", "val")
    assert (masks.images, masks.class_names) == ({"train": 3, "val": 1}, ["sky", "ground"])
    assert masks.counts == {"train": [3, 3], "val": [1, 1]}  # images that hold the class


@pytest.mark.parametrize(("left_out", "words"), [([], "nothing left out"), ([LeftOut("hidden", ["a", "b"])], "2 left out")])
def test_a_line_says_the_size_of_a_split(left_out: list[LeftOut], words: str) -> None:
    assert Contents(["a", "b"], {"test": 1360}, left_out=left_out).line("test") == f"1,360 test images of 2 classes, {words}"
