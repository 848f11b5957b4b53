import numpy as np
import torch
from PIL import Image

from flatten_transformer.tasks.segmentation.plots import draw_classes, draw_comparison, draw_overlay, mask_image, palette
from flatten_transformer.utils.picture_style import COLOURS

GREY = Image.new("RGB", (60, 40), (100, 100, 100))


def classes(*columns: int) -> torch.Tensor:
    """Return a map of 40 × 60 pixels whose vertical stripes have these classes."""
    return torch.tensor(columns).repeat_interleave(60 // len(columns))[None].expand(40, -1)


def test_the_first_classes_have_the_colours_that_everyone_tells_apart() -> None:
    assert palette(7) == list(COLOURS)
    assert len(set(palette(21))) == 21
    assert len(palette(150)) == 150


def test_a_mask_keeps_numbers_of_any_size() -> None:
    for count, mode in ((3, "P"), (256, "P"), (300, "I;16")):
        image = mask_image(torch.tensor([[0, count - 1]]), count)
        assert image.mode == mode
        assert np.asarray(image).tolist() == [[0, count - 1]]
    assert mask_image(torch.tensor([[1]]), 3).convert("RGB").getpixel((0, 0)) == COLOURS[1]


def test_pixels_are_tinted_by_their_class_and_left_alone_without_one() -> None:
    pixels = np.asarray(draw_classes(GREY, classes(-1, 0, 1), ["background", "cat"]))
    assert pixels[20, [5, 25]].tolist() == [[100, 100, 100]] * 2
    wanted = 0.35 * 100 + 0.65 * np.array(COLOURS[1])
    np.testing.assert_allclose(pixels[20, 50], wanted, atol=1.5)
    assert draw_classes(GREY.convert("L"), classes(-1), ["cat"]).mode == "RGB"


def test_a_tint_has_the_hue_of_its_class_over_any_colour_and_its_edge_the_colour_itself() -> None:
    red = Image.new("RGB", (60, 40), (250, 0, 0))
    pixels = np.asarray(draw_classes(red, classes(0, 1), ["background", "cat"])).astype(int)
    tint = (pixels[20, 45] - 0.65 * np.array(COLOURS[1])) / 0.35
    assert np.ptp(tint) < 5  # grey below it
    assert [tuple(pixels[row, column]) for row, column in ((20, 30), (0, 45), (39, 45), (20, 59))] == [COLOURS[1]] * 4
    assert tuple(pixels[20, 29]) == (250, 0, 0)


def test_the_legend_names_the_classes_that_are_there_in_the_very_colours_of_their_edges() -> None:
    few, more = (draw_overlay(GREY, classes(*found), ["cat", "dog", "rabbit"]) for found in ((0,), (0, 1, 2)))
    assert few.width < more.width  # "rabbit" is longer
    assert few.height == more.height == 240  # six times the image
    picture, legend = (part.reshape(-1, 3).tolist() for part in np.split(np.asarray(more), [360], axis=1))
    assert all(list(colour) in legend and list(colour) in picture for colour in COLOURS[:3])
    assert list(COLOURS[1]) not in np.asarray(few)[:, 360:].reshape(-1, 3).tolist()


def test_what_is_not_painted_has_no_colour_in_the_legend() -> None:
    colours = {tuple(pixel) for pixel in np.asarray(draw_overlay(GREY, classes(0), ["background"]))[:, 360:].reshape(-1, 3)}
    assert all(len(set(colour)) == 1 for colour in colours)  # black text on white
    assert (0, 0, 0) in colours


def test_of_many_classes_the_legend_names_the_largest() -> None:
    many = torch.arange(60).expand(40, -1)
    names = [f"class {number}" for number in range(60)]
    assert draw_overlay(GREY, many, names).height < 40 * 20  # 60 lines would take more


def test_small_images_are_enlarged_beside_each_other() -> None:
    truth, found = draw_comparison(GREY, classes(0, 1), classes(1, 1), ["cat", "dog"])
    assert truth.size == (360, 240)
    assert found.height == 240
    assert found.width > 360
    assert np.asarray(truth)[0, [10, 350]].tolist() != np.asarray(found)[0, [10, 350]].tolist()
    legend = np.asarray(found)[:, 360:].reshape(-1, 3).tolist()
    assert all(list(colour) in legend for colour in COLOURS[:2])  # of what is true and of what was found
