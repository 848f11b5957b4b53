"""Meaning of the numbers in masks, and a sanity check of the masks of a split before training."""

# K classes.

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED = -1  # class of pixels that neither loss nor metrics count


class Numbering(NamedTuple):
    """Meaning of the numbers in the masks of a data set."""

    classes: int  # K
    ignore_index: int | None = 255  # value without a class, if any
    zero_is_no_class: bool = False  # classes are 1 … K, as in ADE20K
    values: Sequence[int] | None = None  # value of each class, if not consecutive

    @property
    def numbers(self) -> Sequence[int]:
        """Mask value of each class, K numbers."""
        first = int(self.zero_is_no_class)
        return range(first, first + self.classes) if self.values is None else self.values

    def classes_of(self, numbers: NDArray[np.generic]) -> NDArray[np.int64]:
        """Return the class of each pixel, int64; IGNORED for pixels without one.

        Args:
            numbers: Mask values, ``[height, width]``.

        Raises:
            ValueError: If a value is unknown; the message holds it.

        Example:
            >>> Numbering(2, zero_is_no_class=True).classes_of(np.array([[0, 1, 2, 255]])).tolist()
            [[-1, 0, 1, -1]]
            >>> Numbering(2, None, values=(0, 255)).classes_of(np.array([[0, 255]])).tolist()
            [[0, 1]]
        """
        wide = numbers.astype(np.int64)
        classes = self._lookup(wide)
        ignored = (wide == 0) & self.zero_is_no_class
        if self.ignore_index is not None:
            ignored |= wide == self.ignore_index
        unknown = wide[((classes < 0) | (classes >= self.classes)) & ~ignored]
        if unknown.size:
            raise ValueError(f"the class number {unknown[0]} is in {unknown.size} pixels, but {self._meaning()}")
        return np.where(ignored, IGNORED, classes)

    def _lookup(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of each value, out of range if it has none."""
        if self.values is None:
            return numbers - int(self.zero_is_no_class)
        order = np.argsort(self.values)
        known = np.array(self.values)[order]
        nearest = np.searchsorted(known, numbers).clip(max=self.classes - 1)
        return np.where(known[nearest] == numbers, order[nearest], -1)

    def _meaning(self) -> str:
        numbers = self.numbers
        shown = f"{numbers[0]} … {numbers[-1]}" if isinstance(numbers, range) else ", ".join(map(str, numbers[:9]))
        none = "no number" if self.ignore_index is None else self.ignore_index
        other = "" if self.zero_is_no_class else ", or say which numbers the classes have: --data.mask_values"
        return f"the classes are {shown} and {none} means none: add the class to the list, or repair the mask{other}"


class MaskCounts(NamedTuple):
    """How many masks hold each class."""

    masks: int  # masks counted
    holding: NDArray[np.int64]  # masks that hold each class, [K]
    ignoring: int  # masks that hold ignored pixels


def count_masks(count: int, classes_of: Callable[[int], NDArray[np.int64]], classes: int, limit_s: float) -> MaskCounts:
    """Count the masks that hold each class, in random order, until the time limit.

    Args:
        count: Number of masks.
        classes_of: Maps a mask's index to its class map.
        classes: K.
        limit_s: Time limit in seconds.

    Example:
        >>> count_masks(2, lambda index: np.array([[0, 2, 2, IGNORED]]), classes=3, limit_s=60)
        MaskCounts(masks=2, holding=array([2, 0, 2]), ignoring=2)
    """
    holding, start, done = np.zeros(classes + 1, np.int64), time.monotonic(), 0
    for index in random.Random(0).sample(range(count), count):
        if time.monotonic() - start > limit_s:
            break
        holding += np.bincount(classes_of(index).ravel() - IGNORED, minlength=classes + 1) > 0
        done += 1
    return MaskCounts(done, holding[1:], int(holding[0]))


def check_mask_counts(where: str, counts: MaskCounts, names: Sequence[str], numbering: Numbering, *, train: bool) -> None:
    """Raise if masks hold a single class where there should be more.

    Black-and-white masks (0 and 255) look like that, since 255 usually means no class. Other evaluation masks may hold one
    class by chance.

    Args:
        where: Description of the masks, for the message.
        counts: From :func:`count_masks`.
        names: K class names.
        numbering: Meaning of the numbers; explicit ``values`` rule out the black-and-white mix-up.
        train: The counts cover all training masks.

    Raises:
        ValueError: If they do.
    """
    present = [int(label) for label in np.flatnonzero(counts.holding)]
    if len(present) > 1:
        return
    suspicious = counts.ignoring > 0 and numbering.values is None and len(names) == 2
    if suspicious and present:
        none, missing = numbering.ignore_index, 1 - present[0]
        values = [none if label == missing else numbering.numbers[label] for label in range(2)]
        right = "" if train else f"; if all is right, --data.mask_values '{list(numbering.numbers)}'"
        raise ValueError(
            f"{where} hold {numbering.numbers[present[0]]} and {none} alone, and {none} means no class, so {names[missing]!r} is "
            f"nowhere: if {none} is that class, add --data.mask_values '{values}' --data.ignore_index null{right}"
        )
    if train or suspicious:
        held = f"the class {names[present[0]]!r} alone" if present else "no class at all"
        raise ValueError(f"{where} hold {held}: there is nothing to tell apart; are their numbers those of the classes?")
