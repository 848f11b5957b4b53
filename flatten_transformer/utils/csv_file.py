"""Write CSV files row by row: safe to open in spreadsheets, and always UTF-8."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
from csv import QUOTE_ALL, QUOTE_MINIMAL, writer
from pathlib import Path

from flatten_transformer.utils.atomic_file import GrowingFile, is_stream
from flatten_transformer.utils.printable import printable

# Where a spreadsheet, in some countries after a semicolon too, takes a cell for a formula; also in full-width forms.
_FORMULA = re.compile(r"^(?=[\t\r\n])|((?:^|[;\t\r\n])\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")


def text_cell(text: str) -> str:
    r"""Return text that no spreadsheet runs: a ``'`` stands before what it would take for the beginning of a formula.

    Example:
        >>> text_cell("=1+1"), text_cell("cat-dog"), text_cell("cat; =1")
        ("'=1+1", 'cat-dog', "cat; '=1")
    """
    return _FORMULA.sub(r"\1'", text)


def path_cell(path: Path) -> str:
    """Return the path of a file as text of a cell, which opens the file still: ``./`` stands before a formula.

    Example:
        >>> path_cell(Path("-1.png")), path_cell(Path("images/-1.png"))
        ('./-1.png', 'images/-1.png')
    """
    return f"./{path}" if _FORMULA.match(str(path)) else str(path)


class CsvFile(GrowingFile):
    r"""A CSV file that is written row by row.

    Cells begin with ``'`` where a spreadsheet would run them. Of a file's name, bytes that are no UTF-8 stand as ``\udce9``.
    On a terminal control characters are escaped; in a file they are what they are.

    Args:
        path: As of :class:`GrowingFile`.
        heading: Names of the columns, which go before the first row.

    Example:
        >>> path = getfixture("tmp_path") / "classes.csv"
        >>> with CsvFile(path, ("file", "class")) as table:
        ...     table.write_rows([("a.png", "=1+1")])
        >>> print(path.read_text(), end="")
        file,class
        a.png,'=1+1
    """

    def __init__(self, path: Path, heading: Sequence[str]) -> None:
        super().__init__(path)
        self._before: list[Sequence[str]] = [heading]
        self._for_eyes = _is_terminal(path)

    def write_rows(self, rows: Iterable[Sequence[str]]) -> None:
        """Append rows, all of them or, if there is no room, none.

        Args:
            rows: Cells as text.

        Raises:
            OSError: If they cannot be written.
        """
        lines = io.StringIO(newline="")
        for row in (*self._before, *rows):
            cells = [text_cell(text) for text in row]
            if self._for_eyes:
                cells = [printable(text) for text in cells]
            bare = any("\r" in text for text in cells)  # which Python 3.10 does not quote
            writer(lines, lineterminator="\n", quoting=QUOTE_ALL if bare else QUOTE_MINIMAL).writerow(cells)
        self.write(lines.getvalue().encode("utf-8", "backslashreplace"))
        self._before = []


def _is_terminal(path: Path) -> bool:
    if not is_stream(path) or path.is_fifo():
        return False
    try:
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))
    except OSError:
        return False
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)
