"""Numbers of each class, for every task alike: as a table, a CSV file and a picture."""

# K classes.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from flatten_transformer.utils.atomic_file import write_figure
from flatten_transformer.utils.csv_file import CsvFile
from flatten_transformer.utils.font_fallback import FallbackFonts
from flatten_transformer.utils.metric_names import metric_name
from flatten_transformer.utils.picture_style import LINES, MARKERS, PALE, add_grid, new_figure, styled
from flatten_transformer.utils.terminal import cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS = 20  # classes in the table
_BARS = 40  # classes in the picture
NOTHING = "–"  # in place of a number that nothing was there to measure


@dataclass(frozen=True)
class PerClass:
    """Numbers of each class on the images of one split.

    Args:
        split: Whose images: ``"val"`` or ``"test"``.
        class_names: K names.
        columns: K numbers in 0 … 1 by name, the most important first; NaN where there was nothing to measure.
        support: Images, objects or pixels of each class, K numbers.
        counted: Unit of ``support``.

    Example:
        >>> numbers = PerClass("val", ["cat", "dog", "cow"], {"iou": [0.5, 0.25, math.nan]}, [10, 30, 0], "pixels")
        >>> numbers.mean("iou"), numbers.from_worst()
        (0.375, [1, 0, 2])
    """

    split: str
    class_names: Sequence[str]
    columns: Mapping[str, Sequence[float]]
    support: Sequence[int]
    counted: str

    def mean(self, column: str) -> float:
        """Return the mean of a column over the classes that have a number, NaN if none has."""
        known = [value for value in self.columns[column] if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    def from_worst(self) -> list[int]:
        """Return the classes by the first column, ascending; those without a number last."""
        main = next(iter(self.columns.values()))
        return sorted(range(len(main)), key=lambda label: (math.isnan(main[label]), main[label]))

    def table(self, rest: str) -> Table:
        """Return a table of all classes in their order, or of the worst and best of many.

        Args:
            rest: Where the others are, such as ``"in per_class.csv"``.
        """
        title = f"Each class: {metric_name(f'{self.split}/images')}"
        table = Table(title=title, title_justify="left", caption_justify="left")
        table.add_column("class", overflow="fold")
        for name in self.columns:
            table.add_column(f"{_heading(name)} %", justify="right")
        table.add_column(self.counted, justify="right")
        count = len(self.class_names)
        shown = self.from_worst() if count > _ROWS else list(range(count))
        for place, label in enumerate(shown):
            if count <= _ROWS or not _ROWS // 2 <= place < count - _ROWS // 2:
                numbers = [_percent(column[label]) for column in self.columns.values()]
                table.add_row(cell(self.class_names[label]), *numbers, f"{self.support[label]:,}")
            elif place == _ROWS // 2:
                table.add_row(f"… {count - _ROWS // 2 * 2:,} more {rest}")
        table.add_section()
        table.add_row("mean", *(_percent(self.mean(name)) for name in self.columns), f"{sum(self.support):,}")
        return table

    def write_csv(self, path: Path) -> None:
        """Write all classes in their order, one a row, into a CSV file; a number that is missing is an empty cell."""
        with CsvFile(path, ("class", *self.columns, "support")) as file:
            for label, name in enumerate(self.class_names):
                numbers = ["" if math.isnan(column[label]) else f"{column[label]:.6f}" for column in self.columns.values()]
                file.write_rows([(name, *numbers, str(self.support[label]))])

    def draw(self, path: Path) -> None:
        """Draw the first column as bars, from the best to the worst class, and the others as marks, into a PNG file."""
        with styled():
            write_figure(path, self.figure())

    def figure(self) -> Figure:
        """Return the figure of :meth:`draw`: all classes, or of more than 40 the worst and the best."""
        chosen = self.from_worst()
        if len(chosen) > _BARS:
            chosen = [*chosen[: _BARS // 2], *self._best(_BARS // 2)]
        fonts = FallbackFonts([self.class_names[label] for label in chosen])
        with fonts.styled():
            return self._figure(chosen, [fonts.plot(self.class_names[label]) for label in chosen])

    def _best(self, count: int) -> list[int]:
        main = next(iter(self.columns.values()))
        return [label for label in self.from_worst() if not math.isnan(main[label])][-count:]

    def _figure(self, chosen: Sequence[int], names: Sequence[str]) -> Figure:
        figure = new_figure(8, 1.6 + 0.24 * len(chosen))
        axis = figure.subplots()
        (main, values), *others = self.columns.items()
        places = range(len(chosen))
        bars = [0 if math.isnan(values[label]) else 100 * values[label] for label in chosen]
        axis.barh(places, bars, height=0.7, color="#9ecae1", label=_heading(main))
        for (name, column), colour, marker in zip(others, LINES[1:], MARKERS, strict=False):
            shares = [100 * column[label] for label in chosen]
            axis.scatter(shares, places, s=22, c=colour, marker=marker, label=_heading(name), zorder=3, clip_on=False)
        for place, label in enumerate(chosen):
            if math.isnan(values[label]):
                axis.text(0.5, place, NOTHING, va="center", color=PALE)
        self._frame(axis, chosen, names, main)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
        return figure

    def _frame(self, axis: Axes, chosen: Sequence[int], names: Sequence[str], main: str) -> None:
        """Set the title, the names and the line of the mean."""
        if not math.isnan(mean := self.mean(main)):
            axis.axvline(100 * mean, color=PALE, ls=(0, (1, 2)), lw=1.2, label=f"mean {metric_name(main)}: {100 * mean:.1f} %")
        if len(chosen) < len(self.class_names):
            axis.axhline(_BARS // 2 - 0.5, color=PALE, lw=0.8)
        whole = f": the {_BARS // 2} worst and best of {len(self.class_names)}" if len(chosen) < len(self.class_names) else ""
        axis.set(title=f"each class, {metric_name(f'{self.split}/images')}{whole}", xlabel="%", xlim=(0, 102))
        labels = [f"{name} ({self.support[label]:,})" for name, label in zip(names, chosen, strict=True)]
        axis.set_yticks(range(len(chosen)), labels, fontsize=8.5)
        axis.set_ylim(-0.6, len(chosen) - 0.4)
        axis.set_ylabel(f"class ({self.counted})")
        add_grid(axis)


def _heading(column: str) -> str:
    return "accuracy (recall)" if column == "accuracy" else metric_name(column)


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:.1f}"
