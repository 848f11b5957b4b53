"""The numbers of each class after `flatten test` and `validate`."""

import csv
from pathlib import Path
from typing import Any

import pytest

from flatten_transformer.training.cli import train
from tests.training.test_summary import SHORT


@pytest.mark.parametrize(("stage", "images"), [("validate", 180), ("test", 360)])
def test_judging_prints_the_numbers_of_each_class_and_keeps_them_where_it_is_told(
    stage: Any, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = train(stage, [*SHORT, "--csv", "kept/classes.csv"])
    said = capfd.readouterr().out
    assert f"Each class: {'validation' if stage == 'validate' else 'test'} images" in said
    assert "The numbers of each class are in kept/classes.csv" in said
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "kept" / "classes.csv"]
    with Path("kept/classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["support"]) for row in rows) == images
    hits = sum(float(row["accuracy"]) * int(row["support"]) for row in rows)
    name = "val" if stage == "validate" else "test"
    assert hits / images == pytest.approx(float(cli.trainer.callback_metrics[f"{name}/accuracy"]), abs=1e-5)
