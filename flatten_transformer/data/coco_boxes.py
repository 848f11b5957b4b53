"""Validate COCO boxes: each by itself, then all together to detect other conventions (normalised, corners, centres)."""

# N boxes of a file.

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatten_transformer.data.coco_json import brief

_MAX_COORDINATE_PX = 1e11  # beyond it, a number is no position in an image
_MAX_AREA_PX = 1e10  # the evaluation silently ignores larger objects
_EXPECTED = "write left, top, width and height in pixels"
Box = tuple[float, float, float, float]
Rows = NDArray[np.float64]


def check_box(where: str, numbers: Any) -> Box:
    """Check a box and return its four numbers.

    Args:
        where: File and annotation, for the message.
        numbers: ``bbox`` as in the file.

    Raises:
        ValueError: If it is not a list of four numbers.

    Example:
        >>> check_box("annotation 1", [1, 2, 3.5, 4])
        (1.0, 2.0, 3.5, 4.0)
    """
    if not (isinstance(numbers, list) and len(numbers) == 4 and all(map(_is_number, numbers))):
        raise ValueError(f"{where} has no bbox of four numbers (left, top, width, height), got {brief(numbers)}")
    left, top, width, height = map(float, numbers)
    return left, top, width, height


def check_area(where: str, area: Any) -> float:
    """Check the area of an object and return it.

    Args:
        where: File and annotation, for the message.
        area: Area in pixels, as in the file.

    Raises:
        ValueError: If COCO's evaluation would not count such an area.

    Example:
        >>> check_area("annotation 1", 12)
        12.0
    """
    if not (_is_number(area) and 0 <= area <= _MAX_AREA_PX):
        cure = "correct it, or leave the area out"
        raise ValueError(f"{where} has an area that is no number of pixels in 0 … {_MAX_AREA_PX:.0e}, {brief(area)}: {cure}")
    return float(area)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_MAX_COORDINATE_PX < value < _MAX_COORDINATE_PX


def check_meaning(path: Path, ids: Sequence[int], boxes: Rows, sizes: Rows) -> None:
    """Raise if the boxes of a file only make sense in a convention other than left, top, width and height.

    Args:
        path: Annotation file, for the message.
        ids: N annotation ids.
        boxes: ``[N, 4]``.
        sizes: Image width and height of each box, ``[N, 2]``.

    Raises:
        ValueError: If they look normalised, or like corners or centres.

    Example:
        >>> check_meaning(Path("a.json"), [7], np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[640.0, 480.0]]))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: a.json: 1 of 1 boxes, such as that of annotation 7, lie within 0 … 1: write left, top, ...
    """
    for looks_wrong, cure in _MISTAKES:
        wrong = looks_wrong(boxes, sizes)
        if wrong.any():
            which = f"{wrong.sum()} of {len(boxes)} boxes, such as that of annotation {ids[int(wrong.argmax())]},"
            raise ValueError(f"{path}: {which} {cure}")


def _are_shares(boxes: Rows, sizes: Rows) -> NDArray[np.bool_]:
    """Mark boxes within 0 … 1 if more than one in ten are: no object fits into the first pixel."""
    wrong = np.asarray(((boxes >= 0) & (boxes <= 1)).all(1) & (boxes[:, 2:] > 0).all(1) & (sizes > 2).all(1))
    return wrong & bool(wrong.mean() > 0.1)


def _are_parts(boxes: Rows, sizes: Rows) -> NDArray[np.bool_]:
    """Mark all boxes if they fill exactly 0 … 100 or 0 … 1000 of larger images."""
    reach = (boxes[:, :2] + boxes[:, 2:]).max(0)
    for whole in (100, 1000):
        fills = ((reach <= whole * 1.01) & (reach > whole * 0.9)).all()
        if len(boxes) >= 20 and (boxes >= 0).all() and fills and (sizes >= 2 * whole).all():
            return np.ones(len(boxes), dtype=bool)
    return np.zeros(len(boxes), dtype=bool)


def _stick_out(boxes: Rows, sizes: Rows, share: float) -> NDArray[np.bool_]:
    """Mark boxes that exceed their image on the right or below by a share of its side plus two pixels."""
    return np.asarray((boxes[:, :2] + boxes[:, 2:] > (1 + share) * sizes + 2).any(1))


def _are_corners(boxes: Rows, sizes: Rows) -> NDArray[np.bool_]:
    """Mark boxes that stick out if many do and nearly all fit as left, top, right and bottom."""
    fit = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, 2:] <= sizes + 2).all(1)
    wrong = fit & _stick_out(boxes, sizes, 0.1)
    return wrong & bool(wrong.mean() >= 0.3 and fit.mean() >= 0.95)


def _are_centres(boxes: Rows, sizes: Rows) -> NDArray[np.bool_]:
    """Mark boxes that stick out if some do and all fit around a centre: some correct boxes would touch the left or top edge."""
    halves = boxes[:, 2:] / 2
    fit = (boxes[:, :2] - halves >= -1).all() and (boxes[:, :2] + halves <= sizes + 1).all()
    wrong = _stick_out(boxes, sizes, 0.02)
    return wrong & bool(fit and len(boxes) >= 3 and wrong.mean() >= 0.02)


_CUT = f"{_EXPECTED}; if they are that, cut them to their images"
_MISTAKES: tuple[tuple[Callable[[Rows, Rows], NDArray[np.bool_]], str], ...] = (
    (_are_shares, f"lie within 0 … 1: {_EXPECTED}, not shares of the image"),
    (_are_parts, f"fill 0 … 100 or 0 … 1000 of larger images: {_EXPECTED}, not parts in a hundred or a thousand"),
    (_are_corners, f"stick out of their images, but nearly all boxes fit as left, top, right and bottom: {_CUT}"),
    (_are_centres, f"stick out of their images, but all boxes fit around a centre, x and y: {_CUT}"),
)
