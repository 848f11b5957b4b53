"""How fast images come and what the loop costs. No test asserts a speed."""

import json
from pathlib import Path

import pytest
import torch

from flatten_transformer.benchmark.training import measure_pipeline
from flatten_transformer.cli import main
from flatten_transformer.tasks.classification.data import ImageData


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


@pytest.mark.parametrize("command", ["data", "loop"])
def test_no_report_takes_the_place_of_a_recipe(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path(f"{command}.json").write_text("{}")  # JSON is YAML
    assert main(["benchmark", command, f"{command}.json", "--folder", "."]) == 2
    assert f"{command}.json is read by this command" in capfd.readouterr().err
    assert Path(f"{command}.json").read_text() == "{}"
