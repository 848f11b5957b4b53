"""What the numbers in masks mean, and a look at those of a whole split before anything is trained."""

# K classes.

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED = -1  # the class of pixels that nothing is learned from and nothing is judged by


class Numbering(NamedTuple):
    """What the numbers in the masks of a data set mean."""

    classes: int  # K
    ignore_index: int | None = 255  # the number that means no class, if one does
    zero_is_no_class: bool = False  # so that the classes are 1 … K, as ADE20K's
    values: Sequence[int] | None = None  # the number of each class, where they do not count up

    @property
    def numbers(self) -> Sequence[int]:
        """The number of each class, K of them."""
        first = int(self.zero_is_no_class)
        return range(first, first + self.classes) if self.values is None else self.values

    def classes_of(self, numbers: NDArray[np.generic]) -> NDArray[np.int64]:
        """Return the class of each pixel, int64, IGNORED where there is none.

        Args:
            numbers: Of a mask, ``[height, width]``.

        Raises:
            ValueError: If a number means nothing; the message holds it.

        Example:
            >>> Numbering(2, zero_is_no_class=True).classes_of(np.array([[0, 1, 2, 255]])).tolist()
            [[-1, 0, 1, -1]]
            >>> Numbering(2, None, values=(0, 255)).classes_of(np.array([[0, 255]])).tolist()
            [[0, 1]]
        """
        wide = numbers.astype(np.int64)
        found = self._places(wide)
        nothing = (wide == 0) & self.zero_is_no_class
        if self.ignore_index is not None:
            nothing |= wide == self.ignore_index
        unknown = wide[((found < 0) | (found >= self.classes)) & ~nothing]
        if unknown.size:
            raise ValueError(f"the class number {unknown[0]} is in {unknown.size} pixels, but {self._meaning()}")
        return np.where(nothing, IGNORED, found)

    def _places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which class each number is, out of range where it is none."""
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


class Seen(NamedTuple):
    """What some masks hold."""

    masks: int  # that were looked at
    holding: NDArray[np.int64]  # how many of them hold each class, [K]
    ignoring: int  # how many hold pixels of no class


def look(count: int, classes_of: Callable[[int], NDArray[np.int64]], classes: int, limit_s: float) -> Seen:
    """Count the masks that hold each class, in any order, until the time is over.

    Args:
        count: How many masks there are.
        classes_of: Returns the class of each pixel of a mask by its number.
        classes: K.
        limit_s: Seconds after which no further mask is looked at.

    Example:
        >>> look(2, lambda index: np.array([[0, 2, 2, IGNORED]]), classes=3, limit_s=60)
        Seen(masks=2, holding=array([2, 0, 2]), ignoring=2)
    """
    holding, start, done = np.zeros(classes + 1, np.int64), time.monotonic(), 0
    for index in random.Random(0).sample(range(count), count):
        if time.monotonic() - start > limit_s:
            break
        holding += np.bincount(classes_of(index).ravel() - IGNORED, minlength=classes + 1) > 0
        done += 1
    return Seen(done, holding[1:], int(holding[0]))


def check_seen(where: str, seen: Seen, names: Sequence[str], numbering: Numbering, *, train: bool) -> None:
    """Raise an error if masks hold one class alone where they should hold more.

    Masks in black and white, 0 and 255, look like that, as 255 usually means no class. Other masks to judge by may hold one
    class by chance.

    Args:
        where: Names the masks, for the message.
        seen: From :func:`look`.
        names: Of the K classes.
        numbering: What numbers mean; where it lists the numbers of the classes, the number of no class is not doubted.
        train: The masks are those to learn from, all of them.

    Raises:
        ValueError: If so.
    """
    there = [int(label) for label in np.flatnonzero(seen.holding)]
    if len(there) > 1:
        return
    doubtful = seen.ignoring > 0 and numbering.values is None and len(names) == 2
    if doubtful and there:
        none, missing = numbering.ignore_index, 1 - there[0]
        values = [none if label == missing else numbering.numbers[label] for label in range(2)]
        right = "" if train else f"; if all is right, --data.mask_values '{list(numbering.numbers)}'"
        raise ValueError(
            f"{where} hold {numbering.numbers[there[0]]} and {none} alone, and {none} means no class, so {names[missing]!r} is "
            f"nowhere: if {none} is that class, add --data.mask_values '{values}' --data.ignore_index null{right}"
        )
    if train or doubtful:
        held = f"the class {names[there[0]]!r} alone" if there else "no class at all"
        raise ValueError(f"{where} hold {held}: there is nothing to tell apart; are their numbers those of the classes?")
