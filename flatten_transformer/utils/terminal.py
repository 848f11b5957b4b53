"""Terminal output of text from files: escaped, and never parsed as markup or emoji."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.progress import above_bars

_GAP = 3  # cells between the columns of a table


class Terminal(Console):
    """rich's console, with broken pipes left to the caller."""

    def on_broken_pipe(self) -> None:
        """Re-raise the error."""
        raise  # rich calls this inside its except block


def say(text: str, *, stderr: bool = False) -> None:
    r"""Print a line.

    Args:
        text: Names and paths in it need no escaping.
        stderr: Print to stderr instead of stdout.

    Example:
        >>> say("[b] cat\x1b[2J :cat:")
        [b] cat\x1b[2J :cat:
    """
    with above_bars():
        Terminal(stderr=stderr).print(printable(text), markup=False, emoji=False, soft_wrap=True)


def cell(text: str) -> Text:
    """Return a table cell.

    Example:
        >>> cell("[b]").plain
        '[b]'
    """
    return Text(printable(text))


class RowPrinter:
    """A table on stdout, printed row by row.

    Args:
        title: Title, above the first row.
        columns: Widest text of each column, by heading; wider cells are folded.

    Example:
        >>> table = RowPrinter("Numbers", {"name": "three", "value": "3"})
        >>> table.print("one", "1")  # doctest: +NORMALIZE_WHITESPACE
        Numbers
        name    value
        ─────────────
        one     1
    """

    def __init__(self, title: str, columns: Mapping[str, str]) -> None:
        self._terminal = Terminal()
        widths = [max(cell_len(name), cell_len(printable(widest))) for name, widest in columns.items()]
        while sum(widths) + _GAP * (len(widths) - 1) > self._terminal.width and max(widths) > 1:
            widths[widths.index(max(widths))] -= 1
        self._columns = dict(zip(columns, widths, strict=True))
        self._title: str | None = title

    def print(self, *cells: str) -> None:
        """Print a row, the first one below the title and the headings."""
        table = Table(show_header=self._title is not None, show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
        for name, width in self._columns.items():
            table.add_column(name, width=width, overflow="fold")  # a truncated path is useless
        table.add_row(*map(cell, cells))
        with above_bars():
            if self._title is not None:
                self._terminal.print(self._title, style="table.title")
            self._terminal.print(table)
        self._title = None
