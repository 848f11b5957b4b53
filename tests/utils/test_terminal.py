import os

import pytest

from flatten_transformer.utils.terminal import RowPrinter, cell, say

NAME = "\x1b]0;owned\x07[red]cat[/red] :cat: \r\n\udce9"
SHOWN = r"\x1b]0;owned\x07[red]cat[/red] :cat: \r\n\udce9"


@pytest.mark.parametrize("stderr", [False, True])
def test_what_is_said_is_neither_markup_nor_emoji_nor_control(stderr: bool, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"in {NAME}", stderr=stderr)
    printed = capsys.readouterr()
    assert (printed.err if stderr else printed.out) == f"in {SHOWN}\n"
    assert cell(NAME).plain == SHOWN


def test_the_rows_of_a_table_stand_below_each_other(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = RowPrinter("Names", {"name": NAME, "number": "2"})
    for number, name in enumerate(("a", NAME, "猫")):
        table.print(name, str(number))
        assert (SHOWN in capsys.readouterr().out) == (name == NAME)  # at once
    table.print(NAME, "3")
    table.print("猫", "4")
    first, second = capsys.readouterr().out.splitlines()
    assert first.index("3") == len(SHOWN) + 3
    assert second.index("4") == first.index("3") - 1  # which is as wide as two letters


def test_a_narrow_terminal_folds_the_widest_column(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    table = RowPrinter("Names", {"name": 40 * "n", "class": "dog (100.0%)"})
    table.print(40 * "n", "dog (100.0%)")
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.rstrip() for line in lines] == [f"{15 * 'n'}   dog (100.0%)", 15 * "n", 10 * "n"]


def test_a_reader_that_has_left_is_the_callers_business(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        with pytest.raises(BrokenPipeError):
            say("anybody?")
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            closed.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())
