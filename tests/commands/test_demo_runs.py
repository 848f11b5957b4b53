"""Demos that are broken off or started again: what is finished is taken, what was stopped goes on, nothing else is."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from flatten_transformer.commands import demo_runs, trainings
from flatten_transformer.training import class_report, summary
from flatten_transformer.training.cli import train
from flatten_transformer.training.history import History
from flatten_transformer.training.run_folder import claim
from flatten_transformer.training.run_record import RunRecord
from tests.runs import RECIPE

RUNS = Path("runs/flatten_deit_tiny_patch16_224")
QUICK = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainings, "code", lambda: "abc")


def trained(max_epochs: int, *, resume: bool) -> Path:
    return trainings.trained(RECIPE, [f"--trainer.max_epochs={max_epochs}"], name="demo", resume=resume)


def train_briefly(stage: Any, args: Sequence[str]) -> Any:
    return train(stage, [*args, *QUICK])


def train_not_at_all(stage: Any, args: Sequence[str]) -> Any:
    """Leave what a finished training does."""
    assert stage == "fit"
    assert "--ckpt_path" not in args
    folder = claim(RUNS, "demo")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "model.safetensors").touch()
    (folder / "config.yaml").write_text("seed_everything: 0")
    (folder / "result.json").write_text('{"seconds": 1, "best": {"epoch": 1}, "last": {"epoch": 1}}')
    return SimpleNamespace(folder=folder)


def stop_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    end: Callable[..., None] = History.on_train_epoch_end

    def stop(*args: Any) -> None:
        end(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(History, "on_train_epoch_end", stop)


def test_a_demo_that_was_stopped_goes_on_and_a_finished_one_is_not_trained_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainings, "train", train_briefly)
    for module in (summary, class_report):  # pictures take seconds
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    with monkeypatch.context() as patch:
        stop_after_an_epoch(patch)
        with pytest.raises(KeyboardInterrupt, match="0 of 1 trainings are done; the same command goes on from there"):
            demo_runs.run_recipes(Console(), {"tiny": RECIPE}, 2, resume=True)
    assert RunRecord(RUNS / "demo").state == "stopped"
    capfd.readouterr()

    assert trained(2, resume=True) == RUNS / "demo_2"
    assert f"flatten: {RUNS}/demo was stopped: going on from {RUNS}/demo/checkpoints/last.ckpt\n" in capfd.readouterr().err
    record = RunRecord(RUNS / "demo_2")
    assert (record.state, record.epochs, len(record.rows)) == ("done", 2, 1)  # it has trained the second epoch alone

    monkeypatch.setattr(trainings, "train", None)
    run = demo_runs.run_recipes(Console(), {"tiny": RECIPE}, 2, resume=True)["tiny"]
    assert f"flatten: {RUNS}/demo_2 is trained already; --resume false trains anew" in capfd.readouterr().err
    assert run.model_file == RUNS / "demo_2" / "checkpoints" / "model.safetensors"
    assert run.training_time == ""  # how much of the first part was lost is not known
    assert 0 <= run.metrics["test/accuracy"] <= 1


def test_a_run_of_other_options_or_code_is_left_alone(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def taken(max_epochs: int, resume: bool = True) -> tuple[str, str]:
        folder = trained(max_epochs, resume=resume)
        return folder.name, capfd.readouterr().err.removeprefix(f"flatten: {RUNS}/")

    anew = "training anew\n"
    monkeypatch.setattr(trainings, "train", train_not_at_all)
    assert taken(1) == ("demo", "")
    assert taken(2) == ("demo_2", f"demo is left alone (command differs): {anew}")
    monkeypatch.setattr(trainings, "code", lambda: "def")
    assert taken(2) == ("demo_3", f"demo_2 is left alone (code differs): {anew}")
    assert taken(2, resume=False) == ("demo_4", f"demo_3 is left alone (resume is false): {anew}")
    for _ in range(2):
        assert taken(2) == ("demo_4", "demo_4 is trained already; --resume false trains anew, into another folder\n")
    (RUNS / "demo_4" / "checkpoints" / "model.safetensors").unlink()
    assert taken(2) == ("demo_5", "")
    Path("runs/origins.json").write_text("[")
    assert taken(2)[0] == "demo_6"
