"""What those see who wait: a bar on a terminal, lines in a log."""

import re
import sys

import pytest

from flatten_transformer.utils import progress
from flatten_transformer.utils.progress import note, track
from flatten_transformer.utils.terminal import RowPrinter, say


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(progress, "time", stopped)
    return stopped


def test_a_log_has_a_line_a_part_that_counts_those_done_before_and_says_how_long_the_rest_takes(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with track(["cat", "dog\x1b", "owl"], str.upper, done=5) as parts:
        for _ in parts:
            clock.now_s += 90
    printed = capsys.readouterr()
    first, second, third = printed.err.splitlines()
    assert first == "flatten: 6 of 8: CAT"
    assert second == r"flatten: 7 of 8: DOG\x1b; about 3 min left"
    assert third == "flatten: 8 of 8: OWL; about 2 min left"
    assert printed.out == ""


def test_quick_parts_get_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track(range(1000), quick=True) as parts:
        for _ in parts:
            clock.now_s += 0.125
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" of 1,000: ")[0] for line in lines] == [f"flatten: {number}" for number in (241, 481, 721, 961)]
    assert lines[0].endswith("about 2 min left")


@pytest.mark.parametrize(("quick", "patience_s", "shown"), [(False, 60.0, True), (True, 0.0, True), (True, 60.0, False)])
def test_a_terminal_has_a_bar_at_once_or_if_parts_are_quick_after_a_while(
    quick: bool, patience_s: float, shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", patience_s)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with track(["cat\x1b", "dog"], done=1, quick=quick) as parts:
        list(parts)
    printed = capsys.readouterr()
    assert ("1 of 3 done" in printed.err) == shown
    assert "flatten:" not in printed.err
    assert "cat\x1b" not in printed.err
    assert printed.out == ""
    assert quick or r"2 of 3 done, 00:00 left: dog" in printed.err


@pytest.mark.usefixtures("clock")
def test_a_bar_over_quick_parts_costs_no_more_than_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    drawn: list[int] = []

    def describe(part: int) -> str:
        drawn.append(part)
        return "cat"

    with track(range(1000), describe, quick=True) as parts:
        assert list(parts) == list(range(1000))
    assert drawn == [0]


def test_a_bar_goes_away_when_the_work_is_broken_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def break_off() -> None:
        with track([1, 2]) as parts:
            next(parts)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        break_off()
    assert not progress._bars
    assert stop.tb  # which keeps the iterator alive
    assert capsys.readouterr().err.rpartition("\r")[2].strip() == ""


def test_what_is_said_meanwhile_stands_on_lines_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", sys.stderr)  # one terminal for both
    with track([1, 2]) as parts:
        next(parts)
        say("said")
        note("noted")
        RowPrinter("Table", {"name": "row"}).print("row")
    written = capsys.readouterr().err
    for text in ("said", "flatten: noted", "Table"):
        before = written[: written.index(text)].rpartition("\n")[2]
        assert re.sub(r"\x1b\[\d*m", "", before.rpartition("\r")[2]).strip() == "", before
