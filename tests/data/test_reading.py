import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flatten_transformer.data.image_folder import ImageFiles
from flatten_transformer.data.reading import BadImageError, Transformed
from flatten_transformer.data.source import Source
from flatten_transformer.tasks.classification.data import ImageData
from flatten_transformer.tasks.classification.preprocessing import Preprocessing

DrawFolder = Callable[[Mapping[str, int]], Path]
COLOUR = Preprocessing(8, 3, (0.0,) * 3, (1.0,) * 3)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def truncate(path: Path) -> None:
    NOISE.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def files(draw_folder: DrawFolder) -> list[Path]:
    return sorted(draw_folder({"cat": 5}).rglob("*.png"))


def load(files: list[Path], **arguments: Any) -> Transformed:
    return Transformed(ImageFiles(files, list(range(len(files)))), COLOUR, 3, **arguments)


def palette_with_transparency(path: Path) -> None:
    NOISE.convert("P").save(path, transparency=bytes(range(256)))


def animation(path: Path) -> None:
    NOISE.save(path, save_all=True, append_images=[Image.new("RGB", NOISE.size)])


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("grey.png", lambda path: NOISE.convert("L").save(path)),
        ("deep.png", lambda path: Image.new("I;16", (9, 9), 40_000).save(path)),
        ("print.jpg", lambda path: NOISE.convert("CMYK").save(path)),
        ("palette.png", palette_with_transparency),
        ("moving.gif", animation),
    ],
)
def test_an_unusual_image_is_loaded_in_colour(name: str, save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / name)
    image, _, _ = load([tmp_path / name])[0]
    assert image.shape == (3, 8, 8)
    assert image.std() > 0 or name == "deep.png"
    assert image.mean() > 0.3


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("cut.jpg", truncate, r"cut\.jpg cannot be read as an image \(.*\): save it anew or leave it out"),
        ("cut.png", truncate, r"cut\.png cannot be read as an image"),
        ("notes.png", lambda path: path.write_text("words"), r"notes\.png is not an image that Pillow can read: give it"),
        (
            "real.tif",
            lambda path: Image.new("F", (4, 4)).save(path),
            r"real\.tif is a floating-point image, which has no fixed range",
        ),
        ("gone.png", lambda path: None, r"no image .*gone\.png: check the path"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(name: str, spoil: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    spoil(tmp_path / name)
    with pytest.raises(BadImageError, match=f"{message}.*; or go on without it: --data.on_bad_image skip") as caught:
        load([tmp_path / name])[0]
    assert str(caught.value).count(name) == 1


def test_an_image_that_is_not_a_file_is_named_by_its_number() -> None:
    class Broken(Source):
        labels = (0, 0)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            raise OSError("the disk is gone")

    with pytest.raises(BadImageError, match=r"^image 1: the disk is gone; or go on without it"):
        Transformed(Broken(), COLOUR, 3)[1]


def test_the_next_image_takes_the_place_of_one_that_is_skipped(files: list[Path]) -> None:
    for number in (1, 2, 4):
        truncate(files[number])
    images = load(files, on_bad_image="skip")
    assert [images[number][1] for number in range(5)] == [0, 3, 3, 3, 0]
    assert torch.equal(images[1][0], images[3][0])
    assert images.skipped_names() == [str(files[number]) for number in (1, 2, 4)]


def test_where_nothing_is_wrong_nothing_is_skipped(files: list[Path]) -> None:
    images = load(files, on_bad_image="skip")
    assert [images[number][1] for number in range(5)] == list(range(5))
    assert images.skipped_names() == []


def test_when_every_image_is_bad_skipping_ends(files: list[Path]) -> None:
    for file in files:
        truncate(file)
    with pytest.raises(BadImageError, match=r"none of 5 images can be used, nor .*02\.png: look at the files"):
        load(files, on_bad_image="skip")[2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_other_processes_say_the_same_about_a_bad_image(num_workers: int, draw_folder: DrawFolder) -> None:
    root = draw_folder({"train/cat": 2, "train/dog": 2, "val/cat": 2})
    truncate(root / "val/cat/00.png")
    arguments: dict[str, Any] = {"root": root, "img_size": 8, "num_workers": num_workers}
    strict, lenient = ImageData("folder", **arguments), ImageData("folder", on_bad_image="skip", **arguments)
    for data in (strict, lenient):
        data.setup("validate")
    with pytest.raises(ValueError, match=r"^\S*00\.png cannot be read as an image") as caught:
        next(iter(strict.val_dataloader()))
    assert "Traceback" not in str(caught.value)
    assert lenient.skipped("val") == []
    images, _, _ = next(iter(lenient.val_dataloader()))
    assert torch.equal(images[0], images[1])
    assert lenient.skipped("val") == [str(root / "val/cat/00.png")]
    assert lenient.skipped("train") == []


def test_the_error_survives_the_way_between_processes() -> None:
    assert str(pickle.loads(pickle.dumps(BadImageError("a.jpg is cut short")))) == "a.jpg is cut short"


def test_only_two_things_can_be_done_about_a_bad_image() -> None:
    with pytest.raises(ValueError, match="on_bad_image must be raise or skip, got 'ignore'"):
        ImageData(on_bad_image="ignore")
