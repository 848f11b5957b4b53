"""CSV files written row by row, in UTF-8, safe to open in spreadsheets."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
from csv import QUOTE_ALL, QUOTE_MINIMAL, writer
from pathlib import Path

from flatten_transformer.utils.atomic_file import GrowingFile, is_stream
from flatten_transformer.utils.printable import printable

# Where a spreadsheet reads a cell as a formula, in some locales after a semicolon too; also in full-width forms.
_FORMULA = re.compile(r"^(?=[\t\r\n])|((?:^|[;\t\r\n])\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")


def text_cell(text: str) -> str:
    r"""Return text that no spreadsheet runs: a ``'`` goes before whatever looks like the start of a formula.

    Example:
        >>> text_cell("=1+1"), text_cell("cat-dog"), text_cell("cat; =1")
        ("'=1+1", 'cat-dog', "cat; '=1")
    """
    return _FORMULA.sub(r"\1'", text)


def path_cell(path: Path) -> str:
    """Return a file path as cell text that still opens the file: ``./`` goes before a formula.

    Example:
        >>> path_cell(Path("-1.png")), path_cell(Path("images/-1.png"))
        ('./-1.png', 'images/-1.png')
    """
    return f"./{path}" if _FORMULA.match(str(path)) else str(path)


class CsvFile(GrowingFile):
    r"""A CSV file written row by row.

    Cells that a spreadsheet would run begin with ``'``. Bytes of a file name outside UTF-8 are written as ``\udce9``.
    Control characters are escaped on a terminal, and kept in a file.

    Args:
        path: As in :class:`GrowingFile`.
        heading: Column names, written before the first row.

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
        self._heading: list[Sequence[str]] = [heading]
        self._on_terminal = _is_terminal(path)

    def write_rows(self, rows: Iterable[Sequence[str]]) -> None:
        """Append rows, or none of them if the disk is full.

        Args:
            rows: Cells as text.

        Raises:
            OSError: If they cannot be written.
        """
        lines = io.StringIO(newline="")
        for row in (*self._heading, *rows):
            cells = [text_cell(text) for text in row]
            if self._on_terminal:
                cells = [printable(text) for text in cells]
            bare = any("\r" in text for text in cells)  # which Python 3.10 does not quote
            writer(lines, lineterminator="\n", quoting=QUOTE_ALL if bare else QUOTE_MINIMAL).writerow(cells)
        self.write(lines.getvalue().encode("utf-8", "backslashreplace"))
        self._heading = []


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
