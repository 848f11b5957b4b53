"""Summary of a data set: class names, images per split and class, files left out; as numbers and as tables."""

# K classes.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group
from rich.table import Table
from rich.text import Text

from flatten_transformer.data.source import LeftOut, Split
from flatten_transformer.utils.printable import printable

_MAX_ROWS = 20  # up to here, all classes are shown
_END_ROWS = 6  # beyond it, this many at either end
_EXAMPLES = 3  # files named for each reason


@dataclass(frozen=True)
class Contents:
    """Class names, image counts and left-out files of a data set.

    Args:
        class_names: K names.
        images: Images per split.
        counts: Images (or objects) per class for each split, K numbers; a split is absent where counting would mean reading
            every image.
        counted: Unit of ``counts``: images or objects.
        left_out: Files that no split uses, by reason.

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
        """Return a one-line summary of a split."""
        left_out = sum(len(each.names) for each in self.left_out)
        return f"{self.images[split]:,} {split} images of {len(self.class_names)} classes, {left_out or 'nothing'} left out"

    def tables(self) -> Group:
        """Return rich tables of classes and splits, and of left-out files."""
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
        """Return a row per class; with many classes, both ends plus the smallest and the largest class."""
        rows = [(printable(name), self._counts(label)) for label, name in enumerate(self.class_names)]
        blank = [""] * len(self.images)
        if len(rows) <= _MAX_ROWS:
            return rows
        counts = next(iter(self.counts.values()))
        extremes = {"fewest": counts.index(min(counts)), "most": counts.index(max(counts))}
        extreme_rows = [(f"{title}: {rows[label][0]}", rows[label][1]) for title, label in extremes.items()]
        return [*rows[:_END_ROWS], (f"… {len(rows) - 2 * _END_ROWS} more classes …", blank), *rows[-_END_ROWS:], *extreme_rows]

    def _counts(self, label: int) -> list[str]:
        return [f"{self.counts[split][label]:,}" if split in self.counts else "" for split in self.images]

    def _left_out(self) -> Table | Text:
        if not self.left_out:
            return Text("Left out: nothing")
        table = Table(title="Left out", title_justify="left")
        table.add_column("", justify="right")
        table.add_column("reason", overflow="fold")
        table.add_column("such as", overflow="fold")
        for reason, names in self.left_out:
            shown = ", ".join(printable(name) for name in names[:_EXAMPLES])
            table.add_row(f"{len(names):,}", _text(printable(reason)), _text(shown + ", …" * (len(names) > _EXAMPLES)))
        return table


def _text(text: str) -> Text:
    """Return text that rich does not parse for markup."""
    return Text(text, overflow="fold")


def _shortened(names: Sequence[str]) -> list[str]:
    if len(names) <= _MAX_ROWS:
        return list(names)
    return [*names[:_END_ROWS], f"… {len(names) - 2 * _END_ROWS} more …", *names[-_END_ROWS:]]
