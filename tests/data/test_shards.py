import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from flatten_transformer.data.image_data import ImageData
from flatten_transformer.data.shards import open_shards
from flatten_transformer.data.source import Source


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
