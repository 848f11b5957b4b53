from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flatten_transformer.data.digits import Digits
from flatten_transformer.data.preprocessing import read_image, to_mode
from flatten_transformer.tasks.classification.preprocessing import Preprocessing

GREY = Preprocessing(16, 1, (0.5,), (0.5,))
COLOUR = Preprocessing(16, 3, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("preprocessing", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (40, 16)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"])
def test_an_image_file_of_any_mode_and_size_becomes_a_tensor(
    mode: str, size: tuple[int, int], preprocessing: Preprocessing, tmp_path: Path
) -> None:
    file = tmp_path / ("image.tif" if mode == "I" else "image.png")
    Image.new(mode, size).save(file)
    tensor = preprocessing(read_image(file))
    assert tensor.shape == (preprocessing.in_chans, 16, 16)
    assert tensor.isfinite().all()


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "image.jpg"), ("YCbCr", "image.jpg"), ("LAB", "image.tif")])
def test_a_print_or_video_colour_space_becomes_rgb(mode: str, name: str, tmp_path: Path) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / name)
    assert COLOUR(read_image(tmp_path / name)).shape == (3, 16, 16)


@pytest.mark.parametrize(("mode", "white"), [("L", 255), ("RGB", (255, 255, 255)), ("I;16", 65535), ("I", 65535), ("1", 1)])
def test_white_is_white_at_any_depth(mode: str, white: int | tuple[int, ...]) -> None:
    assert (GREY(Image.new(mode, (4, 4), white)) == 1).all()
    assert (GREY(Image.new(mode, (4, 4))) == -1).all()


def test_sixteen_bits_keep_their_grey() -> None:
    assert to_mode(Image.new("I;16", (1, 1), 128 * 257), in_chans=1).getpixel((0, 0)) == 128


def test_what_is_transparent_is_white_whatever_its_hidden_colour() -> None:
    hidden = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    assert to_mode(hidden, in_chans=3).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert to_mode(palette, in_chans=1).getpixel((0, 0)) == 255


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    Image.new("RGB", (8, 4)).save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").size == (4, 8)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (255, 0)]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert (GREY(read_image(tmp_path / "image.gif")) == 1).all()


def test_a_digit_from_a_file_looks_as_it_looked_in_training(tmp_path: Path) -> None:
    Digits("test", size=8)[0][0].save(tmp_path / "digit.png")
    enlarged = Digits("test", size=16)[0][0]
    torch.testing.assert_close(GREY(read_image(tmp_path / "digit.png")), GREY(enlarged), rtol=0, atol=0)


def test_mean_and_deviation_are_taken_channel_by_channel() -> None:
    shifted = Preprocessing(4, 3, (0.0, 0.5, 1.0), (1.0, 0.5, 0.25))(Image.new("RGB", (4, 4), "white"))
    assert shifted[:, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_only_the_centre_is_kept_of_an_image() -> None:
    image = Image.new("L", (100, 50), 0)
    image.paste(255, (35, 10, 65, 40))  # white where 3/5 of the height lie
    assert (GREY(image) == 1).float().mean() < 0.5
    assert (replace(GREY, crop_pct=0.5)(image) == 1).all()


def test_an_image_with_floating_point_values_is_refused() -> None:
    with pytest.raises(ValueError, match="no fixed range: save it with 8 or 16 bits"):
        GREY(Image.new("F", (4, 4)))


@pytest.mark.parametrize(("suffix", "kept"), [(".png", 60), (".jpg", 300), (".png", 2000)])
def test_a_truncated_image_is_refused_by_its_name(suffix: str, kept: int, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    cut.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"cut{suffix} "):
        read_image(cut)


def test_a_file_that_is_no_image_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"notes\.png is not an image that Pillow can read: give it a PNG"):
        read_image(tmp_path / "notes.png")
    with pytest.raises(ValueError, match="is a folder: give it the images themselves"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no image .*missing\.png: check the path"):
        read_image(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"img_size": 0}, "img_size must be at least 1, got 0"),
        ({"in_chans": 4}, r"in_chans must be 1 \(grey\) or 3 \(colour\), got 4"),
        ({"mean": (0.5, 0.5)}, r"mean must hold one number for each of in_chans=1 channels, got \[0.5, 0.5\]"),
        ({"std": ()}, "std must hold one number for each"),
        ({"std": (0.0,)}, r"std must be positive, got \[0.0\]"),
        ({"crop_pct": 1.5}, "crop_pct must lie in 0 … 1, above 0, got 1.5"),
    ],
)
def test_a_number_out_of_range_is_refused(wrong: dict[str, object], message: str) -> None:
    arguments = {"img_size": 16, "in_chans": 1, "mean": (0.5,), "std": (0.5,)} | wrong
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)  # type: ignore[arg-type]  # wrong on purpose
