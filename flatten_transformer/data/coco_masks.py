"""Validate COCO masks before they reach the C decoder, which does not check its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray

from flatten_transformer.data.coco_json import brief

_MAX_OUTLINE_PX = 2_000_000  # rasterising takes 120 bytes per pixel of an outline
_MAX_CHARACTERS = 7  # of a run length of 32 bits
_REPAIR = "correct or remove it"


def check_mask(where: str, segmentation: Any, height: int, width: int) -> Any:
    """Return polygons with at least three corners, or a run-length encoding; None if the mask is empty.

    Args:
        where: File and annotation, for the message.
        segmentation: As in the file.
        height: Image height.
        width: Image width.

    Raises:
        ValueError: If it is neither, or malformed.

    Example:
        >>> check_mask("annotation 1", [[0, 0, 3, 0, 3, 3], [1, 1, 2, 2]], 4, 4)
        [[0, 0, 3, 0, 3, 3]]
        >>> check_mask("annotation 2", {"size": [2, 2], "counts": [4]}, 2, 2)
    """
    if isinstance(segmentation, dict):
        return _run_lengths(where, segmentation, height, width)
    if isinstance(segmentation, list):
        if len(segmentation) >= 3 and all(isinstance(part, list) and len(part) == 2 for part in segmentation):
            raise ValueError(f"{where} has a polygon of pairs, {brief(segmentation)}: write [[x, y, x, y, …]]")
        return [polygon for polygon in segmentation if _has_corners(where, polygon, max(height, width))] or None
    cure = "give it polygons or a run-length encoding, or learn boxes alone: --data.masks false"
    raise ValueError(f"{where} has no segmentation to learn a mask from, got {brief(segmentation)}: {cure}")


def check_unit(where: str, segmentation: Any, box: Sequence[float]) -> None:
    """Raise if polygons are normalised while their box is in pixels.

    Args:
        where: File and annotation, for the message.
        segmentation: From :func:`check_mask`.
        box: Left, top, width, height.

    Raises:
        ValueError: If the polygons lie within 0 … 1 and the box does not.
    """
    if isinstance(segmentation, list) and min(box[2:]) > 2 and max(map(max, segmentation)) <= 1:
        raise ValueError(f"{where} has polygons within 0 … 1, but a larger box: write pixels, not shares of the image")


def _has_corners(where: str, polygon: Any, side: int) -> bool:
    """Return whether a polygon has at least three corners; raise if it is malformed."""
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        raise ValueError(f"{where} has a polygon that holds something besides numbers, {brief(polygon)}: {_REPAIR}")
    if len(polygon) % 2:
        raise ValueError(f"{where} has a polygon of {len(polygon)} numbers, but each corner has two, x and y: {_REPAIR}")
    if not polygon:
        return False
    low, high = min(polygon), max(polygon)
    if not (low >= -side and high <= 2 * side) or sum(polygon) != sum(polygon):  # NaN != NaN
        raise ValueError(f"{where} has a polygon far outside its image, {brief(polygon)}: {_REPAIR}")
    if len(polygon) * (high - low) > _MAX_OUTLINE_PX and _outline(polygon) > _MAX_OUTLINE_PX:
        raise ValueError(f"{where} has a polygon whose outline is longer than {_MAX_OUTLINE_PX:,} pixels: {_REPAIR}")
    return len(polygon) >= 6


def _outline(polygon: list[float]) -> float:
    corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, 0)).max(1).sum())


def _run_lengths(where: str, segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any] | None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(
            f"{where} has a run-length mask of {brief(size)}, but its image is {[height, width]} (height, width): {_REPAIR}"
        )
    runs = _runs(counts)
    if runs is None or not runs.size or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(
            f"{where} has a run-length mask that cannot be read, {brief(counts)}: its runs must add up to the "
            f"{height * width} pixels of the image; {_REPAIR}"
        )
    return {"size": [height, width], "counts": counts} if runs[1::2].any() else None


def _runs(counts: Any) -> NDArray[np.int64] | None:
    """Return the run lengths of a mask, or None if they are malformed."""
    if isinstance(counts, str) and counts.isascii():
        return _decompress(np.frombuffer(counts.encode(), dtype=np.uint8).astype(np.int64) - ord("0"))
    if isinstance(counts, list) and set(map(type, counts)) == {int} and max(counts) < 2**32 and min(counts) >= 0:
        return np.array(counts, dtype=np.int64)
    return None


def _decompress(digits: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Decode COCO's compressed run lengths: six bits per character, five of payload (lowest first) and a continuation bit.

    From the fourth run on, each is stored as the difference to the last but one.
    """
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        return None
    shifts = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shifts, starts)
    runs -= np.where(digits[ends] & 16, 1, 0) << (5 * lengths)  # the highest bit is the sign
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return the compressed run-length encoding of polygons or of uncompressed runs.

    Args:
        segmentation: From :func:`check_mask`.
        height: Image height.
        width: Image width.

    Example:
        >>> encode([[0, 0, 3, 0, 3, 3, 0, 3]], height=4, width=4)
        {'size': [4, 4], 'counts': b'0310004'}
    """
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], (str, bytes)):
        return segmentation
    encoded = rle.frPyObjects(segmentation, height, width)
    merged: dict[str, Any] = rle.merge(encoded) if isinstance(encoded, list) else encoded
    return merged
