"""`flatten runs` reads what runs have left, whatever became of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.cli import main
from flatten_transformer.training.lock import locked

CONFIG: dict[str, Any] = {
    "model": {"name": "flatten_deit_tiny_patch16_224", "model_args": {"depth": 1}, "optim": {"lr": 1e-3}},
    "data": {"dataset": "folder", "root": "pets"},
    "trainer": {"max_epochs": 5, "logger": "here"},
    "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
}
METRICS = """epoch,step,lr,train/loss,val/accuracy,val/loss
0,10,,,0.5,2.0
0,10,0.001,2.1,,
1,20,,,0.75,1.5
2,30,,,0.625,1.25
"""


def write_run(name: str, *, ended: bool = False, checkpoint: bool = True, metrics: str = METRICS, **optim: float) -> Path:
    folder = Path("runs", name)
    (folder / "checkpoints").mkdir(parents=True)
    model = {**CONFIG["model"], "optim": {**CONFIG["model"]["optim"], **optim}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "model": model}))
    (folder / "metrics.csv").write_text(metrics)
    if checkpoint:
        (folder / "checkpoints" / "last.ckpt").touch()
    if ended:
        best, last = {"epoch": 4, "val/accuracy": 0.8125, "val/loss": 1.0}, {"epoch": 5, "val/accuracy": 0.75}
        result = {"monitor": "val/accuracy", "best": best, "last": last, "images_per_second": 9.5, "seconds": 125.2}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, list[str]]:
    assert main(["runs", *argv]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines}


def test_runs_are_listed_with_what_they_came_to(capsys: pytest.CaptureFixture[str]) -> None:
    write_run("finetune/mine", ended=True)
    write_run("finetune/version_0")
    write_run("digits/flatten_deit/version_0", checkpoint=False, metrics="")
    held = write_run("digits/flatten_deit/version_1")
    with locked([held / "checkpoints"]):
        table = shown(capsys)
    name = "flatten_deit_tiny_patch16_224"
    assert table["runs/finetune/mine"] == [name, "folder pets", "5/5", "4: 81.2 % val/accuracy", "2 min", "done"]
    assert [*table["runs/finetune/version_0"][:4], table["runs/finetune/version_0"][-1]] == [
        *(name, "folder pets", "3/5", "2: 75.0 % val/accuracy"),
        "stopped",
    ]
    assert table["runs/digits/flatten_deit/version_0"][2:4] == ["0/5", "-"]
    assert table["runs/digits/flatten_deit/version_0"][-1] == "failed"
    assert table["runs/digits/flatten_deit/version_1"][-1] == "running"
    assert not list(held.rglob(".training.lock"))


def test_two_runs_are_compared_by_results_and_by_the_settings_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    write_run("finetune/mine", ended=True)
    write_run("finetune/other", lr=1e-2, layer_decay=0.75)
    table = shown(capsys, "runs/finetune/mine", "runs/finetune/other")
    assert table["val/accuracy"] == ["81.2 %", "75.0 %"]
    assert table["state"] == ["done", "stopped"]
    assert table["model.optim.lr"] == ["0.001", "0.01"]
    assert table["model.optim.layer_decay"] == ["-", "0.75"]
    assert "data.root" not in table
    assert "trainer.logger" not in table


def test_the_lowest_is_the_best_where_a_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run("finetune/mine")
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "checkpoint": {"monitor": "val/loss", "mode": "min"}}))
    assert shown(capsys)["runs/finetune/mine"][3] == "3: 1.25 val/loss"


@pytest.mark.parametrize(
    ("file", "content", "state"),
    [("result.json", "{", "unreadable"), ("config.yaml", "model: [", "unreadable"), ("config.yaml", "5", "unreadable"),
     ("metrics.csv", "epoch,val/accuracy\n0,many\n", "unreadable"), ("result.json", '{"best": 3}', "unreadable"),
     ("result.json", "{}", "unreadable: result.json is not what a training writes (no 'best')"),
     ("result.json", '{"best": {"epoch": NaN}, "last": {"epoch": 1}, "seconds": 1}', "unreadable"),
     ("config.yaml", "- " * 50_000, "unreadable: config.yaml is not what a training writes (nested more than 100 deep"),
     ("config.yaml", "a: \0", "unreadable"), ("metrics.csv", "epoch,val/accuracy\n0,1,2\n", "unreadable"),
     ("metrics.csv", "epoch,val/accuracy\n0," + "1" * 200_000, "unreadable")],
)  # fmt: skip
def test_a_damaged_run_does_not_hide_the_others(file: str, content: str, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    (write_run("finetune/mine") / file).write_text(content)
    write_run("finetune/other")
    table = shown(capsys)
    assert table["runs/finetune/mine"][-1].startswith(state)
    assert table["runs/finetune/other"][-1] == "stopped"
    assert main(["runs", "runs/finetune/other", "runs/finetune/mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"runs/finetune/mine/{file} is not what a training writes" in line


@pytest.mark.parametrize("settings", ["model: 5", "model: {model_args: [1]}", "checkpoint: [1]", "checkpoint: {dirpath: 5}"])
def test_settings_of_another_kind_are_no_error(settings: str, capsys: pytest.CaptureFixture[str]) -> None:
    odd = yaml.safe_load(settings)
    (write_run("finetune/mine") / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **odd}))
    write_run("finetune/other")
    assert shown(capsys)["runs/finetune/mine"][-1] in ("stopped", "failed")
    assert main(["runs", "runs/finetune/other", "runs/finetune/mine"]) == 0


def test_a_configuration_of_something_else_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    write_run("finetune/mine")
    for name, content in {"of_a_tool": "a: 1\n", "broken": "- ["}.items():
        Path("runs", name).mkdir()
        Path("runs", name, "config.yaml").write_text(content)
    Path("runs/a_link").mkdir()
    Path("runs/a_link/config.yaml").symlink_to("nowhere")
    Path("runs/a_folder/config.yaml").mkdir(parents=True)
    assert [name for name in shown(capsys) if name.startswith("runs/")] == ["runs/finetune/mine"]


@pytest.mark.parametrize(("argv", "message"), [([], "no folder runs"), (["."], "no run in .")])
def test_where_there_is_no_run_it_says_so(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", *argv]) == 2
    assert message in capsys.readouterr().err
