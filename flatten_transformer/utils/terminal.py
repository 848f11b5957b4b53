"""Print text that came from files: escaped, and never taken for markup or emoji."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flatten_transformer.utils.printable import printable

_GAP = 3  # cells between the columns of a table


class Terminal(Console):
    """rich's console, which leaves it to the caller what follows when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Let the error pass."""
        raise  # rich calls this while it handles the error


def say(text: str, *, stderr: bool = False) -> None:
    r"""Print a line for people.

    Args:
        text: With names and paths as they are.
        stderr: Print it there instead of on stdout.

    Example:
        >>> say("[b] cat\x1b[2J :cat:")
        [b] cat\x1b[2J :cat:
    """
    Terminal(stderr=stderr).print(printable(text), markup=False, emoji=False, soft_wrap=True)


def cell(text: str) -> Text:
    """Return text for a cell of a table.

    Example:
        >>> cell("[b]").plain
        '[b]'
    """
    return Text(printable(text))


class RowPrinter:
    """A table on stdout whose rows are seen as they come.

    Args:
        title: Above it.
        columns: The widest text of each column, by the heading of the column; wider ones are folded.

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
        """Print a row, and what stands above all rows before the first one."""
        if self._title is not None:
            self._terminal.print(self._title, style="table.title")
        table = Table(show_header=self._title is not None, show_edge=False, pad_edge=False, box=SIMPLE_HEAD)
        for name, width in self._columns.items():
            table.add_column(name, width=width, overflow="fold")  # a path is of no use cut short
        table.add_row(*map(cell, cells))
        self._terminal.print(table)
        self._title = None
