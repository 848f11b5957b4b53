import re
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as rle

from flatten_transformer.data.coco_masks import check_mask, check_unit, encode
from flatten_transformer.data.scenes import run_lengths

WHERE = "a.json: annotation 7"


def drawn(seed: int) -> np.ndarray:
    """Return a mask, ``[height, width]``, of few or many runs, short or long."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 200, 2))
    values = np.cumsum(rng.random(height * width) < rng.choice([0.5, 0.01, 0.0005])) % 2
    return np.asfortranarray(values.reshape(height, width).astype(np.uint8))


@pytest.mark.parametrize("seed", range(20))
def test_a_run_length_mask_is_read_as_cocos_decoder_reads_it(seed: int) -> None:
    mask = drawn(seed)
    text = rle.encode(mask)["counts"].decode()
    for counts in (text, run_lengths(mask.astype(bool))):
        found = check_mask(WHERE, {"size": list(mask.shape), "counts": counts}, *mask.shape)
        assert (found is None) == (not mask.any())
        if found is not None:
            np.testing.assert_array_equal(rle.decode(encode(found, *mask.shape)), mask)
    if mask.size > 2:
        for broken in (text[:-1], text + "1", "~" + text, text + "o", "é" + text):
            with pytest.raises(ValueError, match="annotation 7 has a run-length mask that cannot be read"):
                check_mask(WHERE, {"size": list(mask.shape), "counts": broken}, *mask.shape)


@pytest.mark.parametrize(
    "counts",
    [
        "hello", "", "P" * 1000, "o" * 9, "0" * 3000, "\x00", None, 7, {}, [], ["2400"], [2400.0], [True] * 2400, [None],
        [[2400]],
        [100, -20, 2320], [100, 20, 99999], [100, 20], [2401], [2**32 + 2400], [10**400], [2**63, 2**63, 2400], [float("nan")],
    ],
)  # fmt: skip
def test_runs_that_do_not_make_the_image_are_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.json: annotation 7 has a run-length mask that cannot be read, .*2400 pixels"):
        check_mask(WHERE, {"size": [40, 60], "counts": counts}, 40, 60)


@pytest.mark.parametrize("size", [None, [60, 40], [40], "40", [40, 60, 1], [float("nan"), 60], [10**400, 60], {}])
def test_a_mask_of_another_size_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"annotation 7 has a run-length mask of .*, but its image is \[40, 60\]"):
        check_mask(WHERE, {"size": size, "counts": [2400]}, 40, 60)


def test_a_size_equal_to_the_image_is_written_in_whole_numbers() -> None:
    assert repr(check_mask(WHERE, {"size": [1.0, True], "counts": [0, 1]}, 1, 1)["size"]) == "[1, 1]"


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "has no segmentation to learn a mask from, got None: give it polygons"),
        ("polygon", "has no segmentation to learn a mask from, got 'polygon'"),
        (7, "has no segmentation"),
        ([1, 1, 9, 1, 9, 9], "has a polygon that holds something besides numbers, 1"),
        ([[[1, 1], [9, 1], [9, 9]]], "has a polygon that holds something besides numbers, [[1, 1], [9, 1], [9, 9]]"),
        ([["1", "1", "9", "1", "9", "9"]], "has a polygon that holds something besides numbers"),
        ([[True, 1, 9, 1, 9, 9]], "has a polygon that holds something besides numbers"),
        ([[1, 1, 9, 1, 9, None]], "has a polygon that holds something besides numbers"),
        ([[1, 1, 9, 1, 9]], "has a polygon of 5 numbers, but each corner has two, x and y"),
        ([[1, 1], [9, 1], [9, 9]], "has a polygon of pairs, [[1, 1], [9, 1], [9, 9]]: write [[x, y, x, y, …]]"),
        ([[1, 1, 9, 1, 9, float("nan")]], "has a polygon far outside its image"),
        ([[float("nan"), 1, 9, 1, 9, 9]], "has a polygon far outside its image"),
        ([[1, 1, 9, 1, 9, float("inf")]], "has a polygon far outside its image"),
        ([[1, 1, 9, 1, 9, 1e9]], "has a polygon far outside its image"),
        ([[1, 1, 9, 1, 9, -1e30]], "has a polygon far outside its image"),
        ([[1, 1, 9, 1, 9, 10**400]], "has a polygon far outside its image"),
    ],
    ids=str,
)
def test_a_broken_polygon_is_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"a.json: annotation 7 {message}")):
        check_mask(WHERE, segmentation, 40, 60)


def test_an_outline_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="annotation 7 has a polygon whose outline is longer than 2,000,000 pixels"):
        check_mask(WHERE, [[0, 0, 100, 100] * 12000], 100, 100)
    many_small_steps = [coordinate for step in range(30_000) for coordinate in (step % 100, step // 300)]
    assert check_mask(WHERE, [many_small_steps], 100, 100) == [many_small_steps]


def test_what_is_left_of_polygons_has_three_corners() -> None:
    assert check_mask(WHERE, [[1, 1, 9, 1, 9, 9], [1, 1, 9, 9], []], 40, 60) == [[1, 1, 9, 1, 9, 9]]
    assert check_mask(WHERE, [[1, 1, 9, 9]], 40, 60) is None
    assert check_mask(WHERE, [], 40, 60) is None


def test_a_polygon_may_stick_out_of_its_image() -> None:
    mask = rle.decode(encode(check_mask(WHERE, [[-20, -20, 30, -20, 30, 90, -20, 90]], 40, 60), 40, 60))
    assert mask[:, :30].all()
    assert not mask[:, 30:].any()


def test_polygons_in_shares_are_refused_where_their_box_is_in_pixels() -> None:
    shares = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]
    with pytest.raises(ValueError, match=r"annotation 7 has polygons within 0 … 1, but a larger box: write pixels"):
        check_unit(WHERE, shares, (4, 4, 20, 20))
    check_unit(WHERE, shares, (0.1, 0.1, 0.4, 0.4))
    check_unit(WHERE, None, (4, 4, 20, 20))
