"""Class names of a folder of masks: from a list, or the numbers that occur."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from flatten_transformer.data.class_list import read_class_names
from flatten_transformer.data.mask_file import read_mask
from flatten_transformer.data.safe_paths import check_inside
from flatten_transformer.utils.progress import track

_LISTS = ("classes.txt", "classes.json")
_MOST = 256  # numbered classes
_SHOWN = 8  # numbers in a message


def find_class_list(root: Path) -> Path | None:
    """Return the list of classes in a folder, ``classes.txt`` or ``classes.json``; None without one."""
    return next((root / name for name in _LISTS if (root / name).is_file()), None)


def mask_class_names(
    root: Path, masks: Collection[Path], ignore_index: int | None, values: Sequence[int] | None, allowed: Sequence[Path] | None
) -> list[str]:
    """Return the class names in ``root``, or without a list ``class 0``, ``class 1`` and so on for the numbers in the masks.

    Args:
        root: Data folder.
        masks: All masks; without a list, each is read.
        ignore_index: Number of no class.
        values: Number of each class, if they do not count from 0.
        allowed: Folders that links may lead to; None for any.

    Raises:
        ValueError: If the list is malformed, or the numbers in the masks do not count classes.
    """
    file = find_class_list(root)
    if file is not None:
        return read_class_names(file)
    if values is not None:
        return [f"class {value}" for value in values]
    numbers: set[int] = set()
    with track(masks, "numbers in {}".format, quick=True) as tracked:
        for mask in tracked:
            check_inside(mask, allowed)
            numbers.update(np.unique(read_mask(mask)).tolist())
    classes = sorted(numbers - {ignore_index})
    count = max(classes, default=-1) + 1
    if len(classes) < 2 or min(classes) < 0 or count > _MOST or count > 2 * len(classes):
        shown = ", ".join(map(str, sorted(numbers)[:_SHOWN])) + (" …" if len(numbers) > _SHOWN else "")
        meaning = "" if ignore_index is None or ignore_index not in numbers else f" ({ignore_index} means none)"
        example = sorted(numbers)[:_SHOWN] or [0, 1]
        raise ValueError(
            f"{root} has no classes.txt, and its masks hold the numbers {shown}{meaning}, which do not count classes from 0: "
            f"write classes.txt, a name a line, and if need be add --data.mask_values '{example}' --data.ignore_index null"
        )
    return [f"class {number}" for number in range(count)]
