"""What studies share: results are kept, go on, and are not mixed; and what may be chance."""

import json
import math
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmarks.studies import apart_by_chance, check_names, file_of, pooled, results_in, run_missing

RUNS = [(0, "softmax"), (0, "relu + focusing"), (1, "softmax")]
SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*/run.py"))


def run(name: str, seed: int) -> dict[str, Any]:
    return {"accuracy": 0.9, "header": {"commit": "abc"}}


def origin(name: str) -> dict[str, Any]:
    return {"recipe": "one", "options": name}


def test_a_study_that_is_broken_off_goes_on_with_what_has_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(name: str, seed: int) -> Any:
        if name != "softmax":
            raise SystemExit(130)  # which a training does after it has saved
        return run(name, seed)

    with pytest.raises(KeyboardInterrupt, match="the same command goes on, with the run at hand from its last checkpoint"):
        run_missing(RUNS, tmp_path, stopped, origin)
    assert [path.name for path in tmp_path.iterdir()] == ["softmax-0.json"]
    before = (tmp_path / "softmax-0.json").read_bytes()
    capsys.readouterr()

    run_missing(RUNS, tmp_path, run, origin)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == f"flatten: 1 of 3 results are in {tmp_path} already, of commits abc: going on"
    assert second == "flatten: 2 of 3: relu + focusing, seed 0"
    assert third.startswith("flatten: 3 of 3: softmax, seed 1; about ")
    assert {path.name for path in tmp_path.iterdir()} == {"softmax-0.json", "relu_+_focusing-0.json", "softmax-1.json"}
    assert (tmp_path / "softmax-0.json").read_bytes() == before
    assert results_in(tmp_path) == [{**run(name, seed), "origin": origin(name)} for seed, name in (RUNS[1], RUNS[0], RUNS[2])]


def test_a_result_of_another_origin_is_not_counted_in(tmp_path: Path) -> None:
    run_missing([(0, "softmax")], tmp_path, run, origin)
    with pytest.raises(SystemExit, match=r"softmax-0\.json is a result of another recipe or of other options of 'softmax'"):
        run_missing([(0, "softmax")], tmp_path, run, lambda name: {"recipe": "another"})


def test_a_result_of_an_early_version_that_does_not_say_its_origin_is_taken(tmp_path: Path) -> None:
    file_of(tmp_path, 0, "softmax").write_text(json.dumps(run("softmax", 0)))
    run_missing([(0, "softmax")], tmp_path, lambda name, seed: pytest.fail("trained anew"), origin)


def test_a_name_that_is_none_is_answered_with_those_that_are() -> None:
    check_names(["softmax"], ["softmax", "relu"])
    with pytest.raises(SystemExit, match="no run 'sofmax': choose some of softmax; relu"):
        check_names(["softmax", "sofmax"], ["softmax", "relu"])


def test_the_deviation_of_two_groups_of_one_size_and_their_t_test_are_those_of_scipy() -> None:
    one, other = [86.1, 86.9, 86.4], [85.0, 86.2, 85.9]
    deviation, freedom = pooled([one, other, [99.0]])
    test = stats.ttest_ind(one, other)
    assert freedom == 4
    difference = sum(one) / 3 - sum(other) / 3
    assert difference / test.statistic == pytest.approx(deviation * math.sqrt(2 / 3))
    low, high = test.confidence_interval(0.95)
    assert apart_by_chance(deviation, freedom, 3) == pytest.approx((high - low) / 2)


def test_one_value_a_group_has_no_deviation() -> None:
    deviation, freedom = pooled([[1.0], [2.0]])
    assert (math.isnan(deviation), freedom) == (True, 0)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_every_command_that_a_script_names_can_be_parsed(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [line for line in script.read_text("utf-8").splitlines() if line.startswith("    python ")]
    assert commands
    for command in commands:
        words = shlex.split(command.partition("#")[0])[1:]
        monkeypatch.setattr(sys, "argv", [*words, "--help"])  # after the options, which are read before it
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code in (0, None), command
