"""Races that are broken off: what is finished stays, and the same command goes on from there."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flatten_transformer import cli
from flatten_transformer.benchmark import kept, machine, picture, race
from flatten_transformer.benchmark.race import TOO_SLOW, Entrant
from flatten_transformer.benchmark.report import Point, read_report
from flatten_transformer.benchmark.timing import Spread
from flatten_transformer.commands import benchmark_op

CASES = ["--shapes", "1x2x2x16x2,1x2x3x16x2", "--contenders", "ours,released", "--device", "cpu"]  # in two directions
COMMAND = ["benchmark", "op", *CASES]


class Races:
    """Stands in for the races: each takes no time, and some Ctrl-C breaks one off.

    Args:
        slow: Number of the race in which ours takes too long.
    """

    def __init__(self, slow: int | None = None) -> None:
        self.broken_off: int | None = None
        self.slow = slow
        self.run: list[Point] = []  # of each race, that of ours

    def __call__(self, entrants: Sequence[Entrant], blank: Callable[[str], Point], *_: Any, **__: Any) -> list[Point]:
        if len(self.run) == self.broken_off:
            raise KeyboardInterrupt
        points = []
        for place, entrant in enumerate(entrants):
            reason = entrant.left_out
            if reason is None and place == 0 and len(self.run) == self.slow:
                reason = f"{TOO_SLOW}: one call took 9 s"
            times = {} if reason else {"median_us": 1.0 + place, "q1_us": 1.0, "q3_us": 2.0}
            ratios = {} if reason else {"released": Spread(0.5, 0.5 + place / 2, 1.0)}
            points.append(Point(**{**vars(blank(entrant.name)), **times, "time_ratios": ratios, "reason": reason}))
        self.run.append(points[0])
        return points


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    monkeypatch.setattr(machine, "code", lambda: "def")
    monkeypatch.setattr(picture, "draw", lambda report, path: path.touch())  # which takes a second


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> Races:
    quick = Races()
    monkeypatch.setattr(race, "race", quick)
    return quick


def content(file: str) -> Any:
    return json.loads((Path("runs/benchmark") / file).read_text())


def test_a_broken_off_benchmark_goes_on_after_its_finished_races(races: Races, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*COMMAND, "--folder", "whole"]) == 0
    races.run.clear()
    capfd.readouterr()

    races.broken_off = 3
    assert cli.main(COMMAND) == 130
    broken = capfd.readouterr()
    file = Path("runs/benchmark/op.json")
    assert broken.err.splitlines()[-1] == (
        f"flatten: interrupted: 3 of 4 races are kept in {file}; the same command goes on from there"
    )
    assert "forward+backward" in broken.out  # tables of finished races are there
    assert len(read_report(file).points) == 3 * 2
    assert (content("op.json")["finished"], content("op.json")["total"]) == (3, 4)
    before = content("op.json")["header"]

    races.broken_off = None
    assert cli.main(COMMAND) == 0
    resumed = capfd.readouterr()
    assert len(races.run) == 4
    assert resumed.err.splitlines() == [
        f"flatten: 3 of 4 races are in {file} already: going on",
        "flatten: 4 of 4: 1 × 2·3 tokens, C 16, 2 heads, float32, forward+backward",
    ]
    assert resumed.out.count("contender") == 4 + 1  # of all races, and of the means
    assert content("op.json")["header"] == before
    whole = json.loads(Path("whole/op.json").read_text())
    for entry in ("arguments", "finished", "total", "points", "growth", "means"):
        assert content("op.json")[entry] == whole[entry], entry
    assert sorted(os.listdir("runs/benchmark")) == ["op.json", "op.png"]


def test_a_broken_off_benchmark_that_began_anew_goes_on_without_being_told_so_again(
    races: Races, capfd: pytest.CaptureFixture[str]
) -> None:
    races.broken_off = 3
    assert cli.main([*COMMAND, "--resume", "false"]) == 130
    assert capfd.readouterr().err.splitlines()[-1].endswith("; the same command without --resume false goes on from there")


def test_a_finished_benchmark_is_shown_and_not_measured_again_unless_it_shall_be(
    races: Races, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(COMMAND) == 0
    first = Path("runs/benchmark/op.json").read_bytes()
    assert cli.main(COMMAND) == 0
    assert len(races.run) == 4
    assert "all 4 races are in runs/benchmark/op.json already; --resume false measures anew" in capfd.readouterr().err
    assert cli.main([*COMMAND, "--resume", "false"]) == 0
    assert len(races.run) == 8
    assert Path("runs/benchmark/op.json").read_bytes() == first
    assert content("op_2.json")["points"] == content("op.json")["points"]
    assert "op.json is left alone (resume is false): measuring anew, into runs/benchmark/op_2.json" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "entry", "said"),
    [
        (["--budget_s", "2"], None, "budget_s was 5.0, is 2.0"),
        (["--dtypes", "float64"], None, "dtypes was None, is float64"),
        ([], "commit", "commit was abc, is other"),
        ([], "code", "code was def, is other"),
        ([], "device_name", "is other"),
    ],
)
@pytest.mark.usefixtures("races")
def test_results_of_other_options_machines_or_code_are_left_alone(
    options: list[str], entry: str | None, said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(COMMAND) == 0
    first = Path("runs/benchmark/op.json").read_bytes()
    if entry is not None:
        monkeypatch.setattr(machine, entry, lambda *_: "other")
    assert cli.main([*COMMAND, *options]) == 0
    assert said in capfd.readouterr().err
    assert Path("runs/benchmark/op.json").read_bytes() == first
    assert content("op_2.json")["finished"] == 4
    assert cli.main([*COMMAND, *options]) == 0  # finds its own
    assert not Path("runs/benchmark/op_3.json").exists()


def test_who_was_too_slow_before_the_break_stays_out_after_it(races: Races, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(races, "slow", 0)
    races.broken_off = 1
    assert cli.main(COMMAND) == 130
    races.broken_off = None
    assert cli.main(COMMAND) == 0
    assert (races.run[1].reason or "").startswith("too slow: stopped at 4 tokens")
    assert races.run[2].reason is None


@pytest.mark.usefixtures("races")
def test_a_file_that_another_process_has_begun_meanwhile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kept.open_kept

    def overtaken(*args: Any, **options: Any) -> kept.KeptResults:
        result = found(*args, **options)
        result.path.parent.mkdir(parents=True)
        result.path.write_text("of another process")
        return result

    monkeypatch.setattr(benchmark_op, "open_kept", overtaken)
    assert cli.main(COMMAND) == 0
    assert Path("runs/benchmark/op.json").read_text() == "of another process"
    assert content("op_2.json")["finished"] == 4


@pytest.mark.parametrize("harm", [{"points": 3}, {"points": [{}]}, {"points": []}, {"growth": None}])
@pytest.mark.usefixtures("races")
def test_a_damaged_file_is_one_line(harm: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(COMMAND) == 0
    file = Path("runs/benchmark/op.json")
    file.write_text(json.dumps({**content("op.json"), **harm}))
    harmed = file.read_bytes()
    capfd.readouterr()
    assert cli.main(COMMAND) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "op.json is damaged (" in error
    assert "move it away, or begin anew with --resume false" in error
    assert cli.main([*COMMAND, "--resume", "false"]) == 0
    assert file.read_bytes() == harmed


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"header": 1, "arguments": {}, "finished": 1}', "[" * 100_000])
@pytest.mark.usefixtures("races")
def test_what_is_no_file_of_results_is_left_alone(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "op.json").write_text(text)
    assert cli.main([*COMMAND, "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "op.json").read_text() == text
    assert "op.json is left alone (it does not say how it was measured)" in capfd.readouterr().err
    assert (tmp_path / "op_2.json").is_file()


def test_an_unwritable_folder_is_told_before_anything_is_measured(races: Races, capfd: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert cli.main([*COMMAND, "--folder", "file/deeper"]) == 2
    assert "Not a directory: 'file/deeper/op.json'" in capfd.readouterr().err
    assert not races.run
