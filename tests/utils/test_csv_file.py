import csv
import os
from pathlib import Path

import pytest

from flatten_transformer.utils.csv_file import CsvFile, path_cell, text_cell


def written(path: Path, *rows: tuple[str, ...]) -> list[list[str]]:
    with CsvFile(path, ("file", "class")) as table:
        table.write_rows(rows)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\n=1", " =1", "=cmd|' /C calc'!A0", "a;=1", "\uff1d1", "x\t=1", "x\r\n-1"],
)
def test_no_cell_begins_with_a_formula(text: str, tmp_path: Path) -> None:
    cell = written(tmp_path / "out.csv", ("a.png", text))[1][1]
    assert cell.replace("'", "") == text.replace("'", "")  # as it was, but for a mark
    assert cell != text
    for start in (cell, *cell.replace("\t", ";").replace("\n", ";").replace("\r", ";").split(";")):
        assert not start.lstrip().startswith(("=", "+", "-", "@", "\uff1d"))
    assert cell[0] not in "\t\r\n"


@pytest.mark.parametrize(
    "text", ["cat", "1 = 1", "mother-in-law", "a@b", "it's", 'say "hi"', "a,b", "two\nlines", "a\rb", "猫", ""]
)
def test_other_text_is_read_as_it_was(text: str, tmp_path: Path) -> None:
    assert text_cell(text) == text
    assert written(tmp_path / "out.csv", ("a.png", text)) == [["file", "class"], ["a.png", text]]


@pytest.mark.parametrize("name", ["=1+1.png", "-1.png", "@a.png", "+.png", "a.png"])
def test_a_path_in_a_cell_opens_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    cell = path_cell(Path(name))
    assert Path(cell).exists()
    assert cell[0] in "./a"


def test_names_that_are_no_text_leave_the_table_utf8(tmp_path: Path) -> None:
    rows = written(tmp_path / "out.csv", (os.fsdecode(b"caf\xe9.png"), "\ud800"))
    assert rows[1] == [r"caf\udce9.png", r"\ud800"]


def test_on_a_terminal_control_characters_are_escaped() -> None:
    reader, terminal = os.openpty()
    try:
        with CsvFile(Path(os.ttyname(terminal)), ("file", "class")) as table:
            table.write_rows([("a.png", "\x1b[2J\nforged")])
        assert os.read(reader, 1000) == b"file,class\r\na.png,\\x1b[2J\\nforged\r\n"
    finally:
        os.close(reader)
        os.close(terminal)
