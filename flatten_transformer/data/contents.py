"""What a data set holds: the classes by name, the images of each split, and what is left out, as numbers and as tables."""

# K classes.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group
from rich.table import Table
from rich.text import Text

from flatten_transformer.data.source import LeftOut, Split
from flatten_transformer.utils.printable import printable

_MOST = 20  # classes that are all shown
_ENDS = 6  # of more classes, so many at the beginning and at the end
_NAMED = 3  # of what is left out for one reason


@dataclass(frozen=True)
class Contents:
    """What a data set holds.

    Args:
        class_names: K names.
        images: How many images each split has.
        counts: Of each split, how many images, or objects, each class has, K numbers; a split may lack where that would
            mean to read every image.
        counted: What ``counts`` counts: images or objects.
        left_out: What no split uses, and why.

    Example:
        >>> contents = Contents(["cat", "dog"], {"train": 5}, {"train": [2, 3]}, left_out=[LeftOut("hidden", [".git/"])])
        >>> [len(each.names) for each in contents.left_out], contents.line("train")
        ([1], '5 train images of 2 classes, 1 left out')
    """

    class_names: Sequence[str]
    images: Mapping[Split, int]
    counts: Mapping[Split, Sequence[int]] = field(default_factory=dict)
    counted: str = "images"
    left_out: Sequence[LeftOut] = ()

    def line(self, split: Split) -> str:
        """Return the sizes of a split in a line."""
        left_out = sum(len(each.names) for each in self.left_out)
        return f"{self.images[split]:,} {split} images of {len(self.class_names)} classes, {left_out or 'nothing'} left out"

    def tables(self) -> Group:
        """Return tables for rich to print: classes and splits, and what is left out."""
        return Group(self._classes(), self._left_out())

    def _classes(self) -> Table:
        table = Table(title="Data", title_justify="left")
        table.add_column(f"class ({self.counted})" if self.counts else "classes", overflow="fold")
        for split in self.images:
            table.add_column(split, justify="right")
        if self.counts:
            for name, numbers in self._rows():
                table.add_row(_text(name), *numbers)
        else:
            table.add_row(_text(", ".join(_shortened([printable(name) for name in self.class_names]))))
        table.add_section()
        table.add_row("images", *(f"{count:,}" for count in self.images.values()))
        return table

    def _rows(self) -> list[tuple[str, list[str]]]:
        """Return a row for each class, or, of many, those at both ends, and the smallest and the largest class."""
        rows = [(printable(name), self._numbers(label)) for label, name in enumerate(self.class_names)]
        blank = [""] * len(self.images)
        if len(rows) <= _MOST:
            return rows
        counts = next(iter(self.counts.values()))
        extremes = {"fewest": counts.index(min(counts)), "most": counts.index(max(counts))}
        found = [(f"{title}: {rows[label][0]}", rows[label][1]) for title, label in extremes.items()]
        return [*rows[:_ENDS], (f"… {len(rows) - 2 * _ENDS} more classes …", blank), *rows[-_ENDS:], *found]

    def _numbers(self, label: int) -> list[str]:
        return [f"{self.counts[split][label]:,}" if split in self.counts else "" for split in self.images]

    def _left_out(self) -> Table | Text:
        if not self.left_out:
            return Text("Left out: nothing")
        table = Table(title="Left out", title_justify="left")
        table.add_column("", justify="right")
        table.add_column("reason", overflow="fold")
        table.add_column("such as", overflow="fold")
        for reason, names in self.left_out:
            shown = ", ".join(printable(name) for name in names[:_NAMED])
            table.add_row(f"{len(names):,}", _text(printable(reason)), _text(shown + ", …" * (len(names) > _NAMED)))
        return table


def _text(text: str) -> Text:
    """Return text in which rich looks for no markup."""
    return Text(text, overflow="fold")


def _shortened(names: Sequence[str]) -> list[str]:
    if len(names) <= _MOST:
        return list(names)
    return [*names[:_ENDS], f"… {len(names) - 2 * _ENDS} more …", *names[-_ENDS:]]
