"""What a training says and draws, before and after."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.tasks.task import Task
from flatten_transformer.training.cli import train
from flatten_transformer.training.history import best_row, curves, draw_curves
from tests.runs import RECIPE

SHORT = [
    *("--config", RECIPE),
    *("--trainer.limit_train_batches", "4", "--trainer.enable_progress_bar", "false", "--data.device_batch_size", "16"),
]
RUN = Path("runs/flatten_deit_tiny_patch16_224/version_0")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def squeezed(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_a_training_says_what_it_does_and_what_it_came_to(capfd: pytest.CaptureFixture[str]) -> None:
    cli = train("fit", [*SHORT, "--trainer.max_epochs", "2", "--trainer.precision", "bf16-mixed"])
    said = squeezed(capfd.readouterr().err)
    model = cli.model.model
    assert f"parameters {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M" in said
    assert f"MACs an image {cli.model.count_macs() / 1e9:.3f} G" in said
    assert "classes 10" in said
    assert "images a step 64 = 16 x 1 devices x 4" in said
    assert "steps 2 (2 epochs)" in said
    assert f"folder {RUN}" in said
    assert "device 1 x cpu" in said
    assert "precision bf16-mixed" in said
    best = max(float(row["val/accuracy"]) for row in history(cli))
    assert f"validation accuracy {100 * best:.1f} %" in said
    chosen = next(number for number, row in enumerate(history(cli), 1) if row["val/accuracy"] == best)
    model = RUN / "checkpoints" / "model.safetensors"
    assert f"Use {model}: epoch {chosen}, the best by validation accuracy, {100 * best:.1f} %. The last, of epoch 2, is" in said
    result = json.loads((RUN / "result.json").read_text())
    assert result["best"]["val/accuracy"] == best
    assert (result["best"]["epoch"], result["last"]["epoch"]) == (chosen, 2)
    assert "images a second" in said
    assert "Each class: validation images" in said
    assert f"See {RUN / 'per_class.csv'}" in said
    for name in ("curves.png", "confusion.png", "mistakes.png", "per_class.png"):
        assert f"See {RUN / name}" in said
        with Image.open(RUN / name) as picture:
            assert picture.width > 300


def history(cli: object) -> list[dict[str, float]]:
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    return next(callback.rows for callback in callbacks if type(callback).__name__ == "History")


def test_the_history_goes_on_where_a_training_is_resumed() -> None:
    quick = [*SHORT, "--trainer.limit_val_batches", "1", "--trainer.logger", "false"]  # which draws no pictures either
    train("fit", [*quick, "--trainer.max_epochs", "2"])
    cli = train("fit", [*quick, "--trainer.max_epochs", "3", "--ckpt_path", "last"])
    assert [row["epoch"] for row in history(cli)] == [0, 1, 2]
    assert all({"train/loss", "val/loss", "val/accuracy", "val/top5"} <= row.keys() for row in history(cli))
    assert all(row["images_per_second"] > 0 for row in history(cli))


def test_where_nothing_is_kept_nothing_is_drawn() -> None:
    train("fit", [*SHORT, "--trainer.fast_dev_run", "true"])
    assert not list(Path().rglob("*.png"))


def test_the_best_epoch_is_the_last_of_the_highest_and_there_need_not_be_one() -> None:
    rows = [{"epoch": 0.0, "val/a": 0.5}, {"epoch": 1.0, "val/a": 0.7}, {"epoch": 2.0, "val/a": 0.7}]
    assert best_row(rows, "val/a") == rows[2]
    assert best_row(rows, "val/b") is None


def test_curves_without_a_metric_can_be_drawn(tmp_path: Path) -> None:
    draw_curves([{"epoch": 0.0, "train/loss": 1.0}], "val/accuracy", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.height > 200


def test_curves_count_epochs_from_1_and_put_their_legends_below_the_lines() -> None:
    rows = [{"epoch": e, "train/loss": 2.0 - e, "val/loss": 2.0, "val/accuracy": 0.5 + 0.1 * e} for e in range(2)]
    figure = curves(rows, "val/accuracy")
    figure.draw_without_rendering()
    loss, metrics = figure.axes
    assert [np.asarray(line.get_xdata()).tolist() for line in loss.lines] == [[1, 2], [1, 2], [2, 2]]
    assert [label.get_text() for label in loss.get_xticklabels() if 1 <= label.get_position()[0] <= 2] == ["1", "2"]
    for axis, names in ((loss, ["training loss", "validation loss"]), (metrics, ["validation accuracy"])):
        legend = axis.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [*names, "best validation accuracy: epoch 2"]
        assert legend.get_window_extent().y1 < axis.xaxis.label.get_window_extent().y0  # below the label too


def test_the_classes_reported_are_those_of_the_best_epoch() -> None:
    options = ["--trainer.max_epochs", "3", "--lr", "0.02", "--model.optim.warmup_epochs", "0", "--checkpoint.mode", "min"]
    cli = train("fit", [*SHORT, *options])  # the worst epoch stands for the best
    result = json.loads((RUN / "result.json").read_text())
    with (RUN / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    hits = sum(float(row["accuracy"]) * float(row["support"]) for row in rows if row["class"] in "0123456789")
    assert len({row["val/accuracy"] for row in history(cli)}) > 1  # or any epoch would do
    assert hits / 180 == pytest.approx(result["best"]["val/accuracy"])
    assert result["best"]["val/accuracy"] == min(row["val/accuracy"] for row in history(cli))
    assert result["best"]["epoch"] != 3


def test_pictures_are_drawn_with_the_weights_of_the_best_epoch_and_the_last_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, torch.Tensor]] = []

    def draw(task: Task, folder: Path) -> list[Path]:
        drawn.append({name: tensor.clone() for name, tensor in task.final_model.state_dict().items()})
        return []

    monkeypatch.setattr(ClassificationTask, "draw_report", draw)
    options = ["--trainer.max_epochs", "2", "--checkpoint.monitor", "train/loss", "--checkpoint.mode", "max"]  # the first is best
    cli = train("fit", [*SHORT, *options, "--lr", "0.01", "--model.optim.warmup_epochs", "0"])
    kept = {name: load_file(RUN / "checkpoints" / f"{name}.safetensors") for name in ("model", "last")}
    assert not torch.equal(kept["model"]["head.weight"], kept["last"]["head.weight"])
    for wanted, came in ((kept["model"], drawn[0]), (kept["last"], cli.model.final_model.state_dict())):
        assert all(torch.equal(tensor, came[name]) for name, tensor in wanted.items())
