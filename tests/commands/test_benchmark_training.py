"""How fast images come and what the loop costs. No test asserts a speed."""

import json
import signal
from pathlib import Path

import pytest
import torch

from flatten_transformer.benchmark.training import Pipeline, PlainLoopComparison, measure_pipeline
from flatten_transformer.cli import main
from flatten_transformer.commands import benchmark_data
from flatten_transformer.data.module import DataModule
from flatten_transformer.tasks.classification.data import ImageData
from flatten_transformer.training.interruption import Interrupted
from flatten_transformer.training.recipes import find_recipe


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_data_measures_each_number_of_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--workers", "0,1", "--budget_s", "0.1", "--folder", str(tmp_path)]
    assert main(["benchmark", "data", "digits/flatten_deit", *options]) == 0
    report = json.loads((tmp_path / "data.json").read_text())
    assert [row["workers"] for row in report["pipelines"]] == [0, 1]
    assert all(row["images_per_s"] > 0 for row in report["pipelines"])
    assert report["header"]["torch"] == torch.__version__.partition("+")[0]
    assert "images a second" in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


def test_a_pipeline_counts_what_comes_after_the_first_batch() -> None:
    found = measure_pipeline(ImageData("digits", batch_size=100), budget_s=0.05)
    assert found.images >= 100
    assert found.images_per_s == pytest.approx(found.images / 0.05, rel=0.9)


def test_loop_runs_a_twin_beside_the_training(tmp_path: Path) -> None:
    options = ["--steps", "2", "--rounds", "3", "--folder", str(tmp_path)]
    assert main(["benchmark", "loop", "digits/flatten_deit", *options]) == 0
    report = json.loads((tmp_path / "loop.json").read_text())
    assert len(report["ours_s"]) == len(report["plain_s"]) == 3
    assert min(report["plain_s"]) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["loop.json"]


def test_workers_may_be_none_but_not_less(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "data", "digits/flatten_deit", "--workers", "-1"]) == 2
    assert "workers must be whole numbers from 0 to" in capfd.readouterr().err


def test_data_goes_on_after_the_numbers_of_processes_that_are_done(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def measure(module: DataModule, budget_s: float) -> Pipeline:
        if len(measured) == 1:
            measured.append(-1)
            raise KeyboardInterrupt
        measured.append(module.num_workers)
        return Pipeline(module.num_workers, 10, 100.0, budget_s)

    monkeypatch.setattr(benchmark_data, "measure_pipeline", measure)
    command = ["benchmark", "data", "digits/flatten_deit", "--workers", "0,1,3", "--folder", str(tmp_path)]
    assert main(command) == 130
    assert "flatten: interrupted: 1 of 3 numbers of workers are kept in" in capfd.readouterr().err
    assert [row["workers"] for row in json.loads((tmp_path / "data.json").read_text())["pipelines"]] == [0]
    assert main(command) == 0
    assert measured == [0, -1, 1, 3]
    assert [row["workers"] for row in json.loads((tmp_path / "data.json").read_text())["pipelines"]] == [0, 1, 3]
    printed = capfd.readouterr()
    assert "flatten: 1 of 3 numbers of workers are in" in printed.err
    assert "flatten: 2 of 3: workers: 1\n" in printed.err
    assert printed.out.count("100 ") == 3


def test_a_loop_that_is_stopped_keeps_its_rounds_and_is_not_continued_but_measured_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = PlainLoopComparison._train_copy

    def stopped(self: PlainLoopComparison, *_: object) -> None:
        if len(self.ours_s) == 3:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(PlainLoopComparison, "_train_copy", stopped)
    command = ["benchmark", "loop", "digits/flatten_deit", "--steps", "1", "--rounds", "3", "--folder", str(tmp_path)]
    assert main(command) == 143
    assert "flatten: stopped by SIGTERM: 2 of 3 rounds are kept in" in capfd.readouterr().err
    half = (tmp_path / "loop.json").read_bytes()
    assert len(json.loads(half)["ours_s"]) == 2
    monkeypatch.setattr(PlainLoopComparison, "_train_copy", train)
    assert main(command) == 0
    assert (tmp_path / "loop.json").read_bytes() == half
    assert len(json.loads((tmp_path / "loop_2.json").read_text())["ours_s"]) == 3
    assert "loop.json is left alone (it holds 2 of 3 rounds, which cannot be continued)" in capfd.readouterr().err
    assert main(command) == 0  # at once, from the finished file
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop.json", "loop_2.json"]


@pytest.mark.parametrize("command", ["data", "loop"])
def test_no_report_takes_the_place_of_a_recipe(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = find_recipe("digits/flatten_deit").read_text("utf-8")
    Path(f"{command}.json").write_text(recipe)
    options = {"data": ["--workers", "0", "--budget_s", "0.01"], "loop": ["--steps", "1", "--rounds", "2"]}
    assert main(["benchmark", command, f"{command}.json", *options[command], "--folder", "."]) == 0
    assert f"{command}.json is left alone (it does not say how it was measured)" in capfd.readouterr().err
    assert Path(f"{command}.json").read_text() == recipe
    assert Path(f"{command}_2.json").is_file()
