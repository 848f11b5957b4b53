import os
import tarfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from flatten_transformer.data.shards import open_shards
from flatten_transformer.data.source import LeftOut, Source
from flatten_transformer.tasks.classification.data import ImageData


def png(grey: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (12, 8), (grey, grey, grey)).save(file, "png")
    return file.getvalue()


def write_shard(path: Path, files: Mapping[str, bytes | str | int]) -> Path:
    """Write a tar file: bytes and text as they are, a number as a grey image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            if isinstance(content, int):
                content = png(content)
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return path


def write_shards(root: Path, prefix: str = "pets-") -> Path:
    """Two shards of four images to learn from, one of two to validate; class k is k · 50 grey, image i adds i."""
    for split, count in (("train", 2), ("validation", 1)):
        for number in range(count):
            files: dict[str, str | int] = {}
            for index in range(4 if split == "train" else 2):
                files |= {f"{number}{index}.png": 50 * (index % 2) + index, f"{number}{index}.cls": str(index % 2)}
            write_shard(root / f"{prefix}{split}-{number:04}.tar", files)
    return root


def look(source: Source | None) -> list[tuple[int, int]]:
    assert source is not None
    greys = [source[index] for index in range(len(source))]
    return [(image.convert("L").getpixel((0, 0)), label) for image, label in greys]  # type: ignore[misc]


def test_shards_are_read_in_any_order_with_their_classes_and_splits(tmp_path: Path) -> None:
    found = open_shards(write_shards(tmp_path))
    assert found.class_names == ["0", "1"]
    assert look(found.train) == [(0, 0), (51, 1), (2, 0), (53, 1)] * 2
    assert look(found.val) == [(0, 0), (51, 1)]
    assert found.test is None
    assert found.train.name(5) == f"{tmp_path}/pets-train-0001.tar/11.png"
    assert found.train[5][1] == 1


@pytest.mark.parametrize("path", ["train/0.tar", "x-train-0.tar", "train0.tar"])
@pytest.mark.parametrize("val", ["val/0.tar", "x-valid-0.tar", "validation0.tar"])
def test_the_name_of_a_shard_or_of_its_folder_says_the_split(path: str, val: str, tmp_path: Path) -> None:
    two: dict[str, str | int] = {"a.png": 1, "a.cls": "0", "b.png": 2, "b.cls": "1"}
    write_shard(tmp_path / path, two)
    write_shard(tmp_path / val, {"c.png": 3, "c.cls": "1"})
    found = open_shards(tmp_path)
    assert look(found.train) == [(1, 0), (2, 1)]
    assert look(found.val) == [(3, 1)]


def test_shards_without_a_split_in_their_names_are_for_training(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.png": 1, "a.cls": "0", "b.png": 2, "b.cls": "1"})
    found = open_shards(tmp_path)
    assert (len(found.train), found.val, found.test) == (2, None, None)


def test_only_the_shards_that_are_meant_are_read(tmp_path: Path) -> None:
    write_shards(write_shards(tmp_path, "pets-"), "plants-")
    assert len(open_shards(tmp_path).train) == 16
    assert len(open_shards(tmp_path, "pets").train) == 8


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", "dog", "cow"]])
def test_a_file_names_the_numbers(names: list[str], tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(names) + "\n")
    assert open_shards(tmp_path).class_names == names


def test_a_class_may_be_a_word_or_the_folder_in_the_shard(tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "dog/a.v1.png": 1,
        "cat/b.png": 2,
        "c.png": 3,
        "c.cls": "cow\n",
        "._x.png": "",
        "c.txt": "a cow",
    }
    found = open_shards(write_shard(tmp_path / "0.tar", files).parent)
    assert found.class_names == ["cat", "cow", "dog"]
    assert look(found.train) == [(1, 2), (2, 0), (3, 1)]


def test_shards_become_batches(tmp_path: Path) -> None:
    data = ImageData("wds/pets", root=write_shards(tmp_path), img_size=8, batch_size=2, num_workers=1)
    data.setup("validate")
    images, labels, _ = next(iter(data.val_dataloader()))
    assert images.shape == (2, 3, 8, 8)
    assert labels.tolist() == [0, 1]
    assert torch.unique(images[1, 0]).item() == pytest.approx((51 / 255 - 0.485) / 0.229, abs=1e-4)


def test_a_damaged_image_is_named_with_its_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.png": png(1)[:40], "a.cls": "0", "b.png": 2, "b.cls": "1"})
    with pytest.raises(ValueError, match=r"0\.tar/a\.png (cannot be read|is not an image)"):
        open_shards(tmp_path).train[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": 1}, r"0\.tar/a\.png says no class: add a\.cls, or put it into a folder"),
        ({"x/a.png": 1}, "has one class, 'x', but it takes two to tell apart"),
        ({"a.txt": "a"}, "has no image to learn from: name the .tar files for training such as train-0000.tar"),
    ],
)
def test_shards_that_teach_nothing_are_refused(files: dict[str, str | int], message: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", files)
    with pytest.raises(ValueError, match=message):
        open_shards(tmp_path)


def test_an_unknown_class_in_validation_is_refused(tmp_path: Path) -> None:
    write_shard(write_shards(tmp_path) / "val.tar", {"a.png": 1, "a.cls": "2"})
    with pytest.raises(ValueError, match=r"val\.tar/a\.png is of the class '2', which no training image has"):
        open_shards(tmp_path)


def test_too_few_names_are_refused(tmp_path: Path) -> None:
    (write_shards(tmp_path) / "classes.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"classes\.txt names 1 classes, but the images have 2: write one name a line"):
        open_shards(tmp_path)


def test_a_file_that_is_no_plain_tar_is_refused(tmp_path: Path) -> None:
    shard = write_shards(tmp_path) / "pets-train-0000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(
        ValueError, match=r"pets-train-0000\.tar is not a plain \.tar file, or a damaged one \(.*\): pack it anew"
    ):
        open_shards(tmp_path)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no file cats\*\.tar: check data\.root"):
        open_shards(write_shards(tmp_path), "cats")
    with pytest.raises(FileNotFoundError, match=r"no folder .*/none: check data.root, the folder of the .tar files"):
        open_shards(tmp_path / "none")


def test_a_number_far_above_the_others_is_refused_or_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.png": 1, "a.cls": "0", "b.png": 2, "b.cls": "99999999"})
    with pytest.raises(ValueError, match=r"0\.tar/b\.png is of the class 99999999, but .* has only 2 classes: correct it"):
        open_shards(tmp_path)
    write_shard(tmp_path / "0.tar", {"a.png": 1, "a.cls": "0", "b.png": 2, "b.cls": "30"})
    (tmp_path / "classes.txt").write_text("\n".join(f"kind {number}" for number in range(31)))
    assert open_shards(tmp_path).class_names[30] == "kind 30"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("-1", r"a\.png is of the class -1, but classes are numbered from 0: leave it out"),
        (b"\xff\xfe", r"a\.cls holds .*, which is no text in UTF-8: write a number or a name"),
        ("9" * 2000, r"a\.cls has 2,000 bytes, where a number or the name of a class was wanted"),
    ],
)
def test_a_class_that_is_none_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.png": 1, "a.cls": content, "b.png": 2, "b.cls": "1", "c.png": 2, "c.cls": "0"})
    with pytest.raises(ValueError, match=message):
        open_shards(tmp_path)


def test_digits_of_another_script_are_words(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a.png": 1, "a.cls": "١", "b.png": 2, "b.cls": "1"})
    assert open_shards(tmp_path).class_names == ["1", "١"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("testing-000", "test"),
        ("testset_1", "test"),
        ("dev-0", "val"),
        ("Validation-0", "val"),
        ("test/pets-training-0", "train"),
    ],
)
def test_other_words_for_a_split_are_understood(name: str, split: str, tmp_path: Path) -> None:
    two: dict[str, str | int] = {"a.png": 1, "a.cls": "0", "b.png": 2, "b.cls": "1"}
    write_shard(tmp_path / "train-0.tar", two)
    write_shard(tmp_path / f"{name}.tar", two)
    found = open_shards(tmp_path)._asdict()
    assert {each: len(found[each] or ()) for each in ("train", "val", "test")} == {
        "train": 4 if split == "train" else 2,
        "val": 2 * (split == "val"),
        "test": 2 * (split == "test"),
    }


def write_odd(path: Path, change: Callable[[tarfile.TarInfo], None], content: bytes = b"") -> None:
    """Write two good images, then an odd member, then a third good image."""
    with tarfile.open(path, "w") as tar:
        for name in ("x/a.png", "y/b.png", "x/odd.png", "x/c.png"):
            info = tarfile.TarInfo(name)
            data = content if name == "x/odd.png" else png(9)
            info.size = len(data)
            if name == "x/odd.png":
                change(info)
            tar.addfile(info, BytesIO(data))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_shard_are_not_followed(kind: bytes, tmp_path: Path) -> None:
    png_outside = tmp_path / "outside.png"
    png_outside.write_bytes(png(1))

    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, str(png_outside)

    write_odd(tmp_path / "0.tar", change)
    found = open_shards(tmp_path)
    assert [found.train.name(index).rpartition("/")[2] for index in range(3)] == ["a.png", "b.png", "c.png"]
    assert found.left_out == [LeftOut("in a tar file, but no plain file: a link, a device", ["0.tar/x/odd.png"])]


def test_what_is_neither_an_image_nor_a_class_is_told(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"x/a.png": 1, "y/b.png": 1, "x/a.json": "{}", "y/b.json": "{}", "._z.png": 3})
    reasons = {each.reason: len(each.names) for each in open_shards(tmp_path).left_out}
    assert reasons == {"no image that is read, by its suffix .json": 2, "hidden, or made by the system": 1}


def test_names_that_lead_elsewhere_do_no_harm(tmp_path: Path) -> None:
    write_shard(tmp_path / "data" / "0.tar", {"../../x/a.png": 1, "/etc/b.png": 2})
    assert open_shards(tmp_path / "data").class_names == ["etc", "x"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    write_shard(tmp_path / "data" / "0.tar", {"../a.png": 1, "x/b.png": 2})
    with pytest.raises(ValueError, match=r"0\.tar/\.\./a\.png says no class"):
        open_shards(tmp_path / "data")


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("x/a.png")
            info.size = len(png(1))
            tar.addfile(info, BytesIO(png(1)))
    with pytest.raises(ValueError, match=r"0\.tar holds two files x/a\.png: pack it anew, each once"):
        open_shards(tmp_path)


def spoil(path: Path, place: int, content: bytes) -> None:
    """Write into the third header of a tar file, and correct its checksum where that is not what is spoilt."""
    data = bytearray(path.read_bytes())
    start = data.index(b"x/odd.png")
    data[start + place : start + place + len(content)] = content
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("place", "content"),
    [
        (124, b"\xff" * 11 + b"\x00"),  # a size below 0: tarfile would go back, for ever
        (124, b"\x80" + b"\xff" * 11),  # a size of 2 ** 88
        (257, b"nonsense"),
    ],
)
def test_a_damaged_header_is_refused_with_its_shard(place: int, content: bytes, tmp_path: Path) -> None:
    write_odd(tmp_path / "0.tar", lambda info: None, b"nonsense" * 100)
    spoil(tmp_path / "0.tar", place, content)
    if place == 257:  # a checksum that is wrong: tarfile would take it for the end
        data = bytearray((tmp_path / "0.tar").read_bytes())
        data[data.index(b"x/odd.png") + 148] ^= 1
        (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"0\.tar is not a plain \.tar file, or a damaged one \(.*\): pack it anew"):
        open_shards(tmp_path)


def test_a_pipe_called_tar_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(ValueError, match=r"0\.tar is a pipe or a device"):
        open_shards(tmp_path)


def test_one_shard_under_two_names_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", {"x/a.png": 1, "y/b.png": 1})
    (tmp_path / "val-0.tar").symlink_to("train-0.tar")
    with pytest.raises(ValueError, match=r"train-0\.tar and .*val-0\.tar are one file, whose images would count twice"):
        open_shards(tmp_path)
