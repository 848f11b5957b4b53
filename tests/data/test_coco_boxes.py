from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flatten_transformer.data.coco_boxes import Rows, check_meaning

WIDTH, HEIGHT = 640, 480


def boxes(count: int = 300, largest: float = 0.6, seed: int = 0) -> Rows:
    """Return boxes as they should be, anywhere in their image, ``[N, 4]``."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(0.02, largest, (count, 2)) * (WIDTH, HEIGHT)
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides), sides], 1)


def look(found: Rows) -> None:
    check_meaning(Path("a.json"), range(1, len(found) + 1), found, np.full((len(found), 2), (WIDTH, HEIGHT), dtype=float))


def corners(found: Rows) -> Rows:
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)


def centred(found: Rows) -> Rows:
    return np.concatenate([found[:, :2] + found[:, 2:] / 2, found[:, 2:]], 1)


@pytest.mark.parametrize("count", [1, 5, 300])
@pytest.mark.parametrize("form", [lambda each: each, corners, centred])
def test_shares_of_an_image_are_refused(form: Callable[[Rows], Rows], count: int) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: {count} of {count} boxes, such as that of annotation 1, lie within 0 … 1"):
        look(form(boxes(count)) / np.array([WIDTH, HEIGHT] * 2))


@pytest.mark.parametrize("whole", [100, 1000])
def test_parts_in_a_hundred_or_a_thousand_are_refused(whole: int) -> None:
    found = boxes() / np.array([WIDTH, HEIGHT] * 2) * whole
    with pytest.raises(ValueError, match=r"300 of 300 boxes, .* fill 0 … 100 or 0 … 1000 of larger images"):
        check_meaning(Path("a.json"), range(300), found, np.full((300, 2), 2.5 * whole))


@pytest.mark.parametrize("largest", [0.1, 0.6, 0.95])
@pytest.mark.parametrize("count", [10, 300])
def test_corners_are_refused(largest: float, count: int) -> None:
    with pytest.raises(ValueError, match="stick out of their images, but nearly all boxes fit as left, top, right and bottom"):
        look(corners(boxes(count, largest)))


@pytest.mark.parametrize("largest", [0.15, 0.6, 0.95])
def test_centres_are_refused(largest: float) -> None:
    with pytest.raises(ValueError, match="stick out of their images, but all boxes fit around a centre"):
        look(centred(boxes(largest=largest)))


@pytest.mark.parametrize("largest", [0.05, 0.3, 0.95])
@pytest.mark.parametrize("count", [1, 3, 30, 300])
def test_boxes_that_are_right_pass(largest: float, count: int) -> None:
    for seed in range(50):
        found = boxes(count, largest, seed)
        look(found)
        look(found + np.random.default_rng(seed).uniform(-2, 2, found.shape))  # carelessly drawn
        look(found * (1, 1, 1.05, 1.05))


def test_boxes_that_fill_their_image_pass_though_some_stick_out_a_little() -> None:
    found = np.array([[0.0, 0, WIDTH, HEIGHT], [5, 5, WIDTH, HEIGHT], [1, 0, WIDTH + 1, HEIGHT - 3]] * 10)
    look(found)


def test_some_small_boxes_in_the_corner_pass() -> None:
    found = boxes()
    found[:10] = (0, 0, 1, 1)
    look(found)
