"""What TensorBoard shows of a training, and what the loggers of others need."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.cli import main
from flatten_transformer.training.cli import train
from flatten_transformer.training.history import History
from flatten_transformer.training.log_callbacks import LogSettings
from tests.tasks.conftest import MakeTask
from tests.training.test_summary import RUN, SHORT

Events = Any  # of tensorboard, without annotations


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Events:
    folder = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quick = ["--trainer.limit_val_batches", "1", "--trainer.max_epochs", "2"]
        train("fit", [*SHORT, *quick, "--model.optim.layer_decay", "0.5", "--model.optim.warmup_epochs", "1"])
    read = event_accumulator.EventAccumulator(str(folder / RUN), size_guidance={"images": 0})
    read.Reload()
    return read


def test_there_is_one_learning_rate_whatever_the_groups(events: Events) -> None:
    scalars = events.Tags()["scalars"]
    assert [name for name in scalars if name.startswith("lr")] == ["lr"]
    # of the top layer at the only step of an epoch: where the warm-up begins, then half-way down the cosine
    assert [value.value for value in events.Scalars("lr")] == pytest.approx([1e-6, (1e-3 + 1e-6) / 2], rel=1e-3)
    with (Path(events.path) / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lr"]]
    assert [bool(row["train/accuracy"]) for row in rows] == [True, True]  # in the rows of the training


def test_the_settings_stand_beside_the_best_accuracy(events: Events) -> None:
    said = {tag: metadata.plugin_data.content for tag, metadata in events.summary_metadata.items() if tag.startswith("_hparams_")}
    for name in (b"model", b"lr", b"weight_decay", b"batch_size", b"epochs", b"data"):
        assert name in said["_hparams_/session_start_info"]
    assert b"digits" in said["_hparams_/session_start_info"]
    accuracies = [value.value for value in events.Scalars("val/accuracy")]
    assert [value.value for value in events.Scalars("best/accuracy")] == [accuracies[0], max(accuracies)]
    assert "hp_metric" not in events.Tags()["scalars"]


def test_the_best_stays_the_best_when_later_epochs_are_worse(
    tmp_path: Path, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, board = History(), TensorBoardLogger(tmp_path)
    callback = LogSettings(history, "digits")
    monkeypatch.setattr(callback, "_settings", lambda *_: {"lr": 1.0})
    for epoch, accuracy in enumerate((0.5, 0.25, 0.75)):
        history.rows.append({"epoch": epoch, "val/accuracy": accuracy})
        callback.on_train_epoch_end(cast("Any", SimpleNamespace(loggers=[board], global_step=epoch)), make_task())
    board.finalize("success")
    read = event_accumulator.EventAccumulator(board.log_dir)
    read.Reload()
    assert [value.value for value in read.Scalars("best/accuracy")] == [0.5, 0.5, 0.75]


def test_training_images_and_results_can_be_seen(events: Events) -> None:
    names = {"training images", "results/confusion", "results/curves", "results/mistakes", "results/per_class"}
    assert set(events.Tags()["images"]) == names
    assert all(len(events.Images(name)) == 1 for name in names)
    assert events.Images("training images")[0].width == 4 * (128 + 8) + 8


@pytest.mark.parametrize(
    ("logger", "module", "package"), [("WandbLogger", "wandb", "wandb"), ("CometLogger", "comet_ml", "comet-ml")]
)
def test_a_logger_without_its_package_is_one_line_that_says_how_to_get_it(
    logger: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["fit", "--config", "digits/flatten_deit", "--trainer.logger", logger]) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-1] == f"flatten: error: {logger} needs the package {package}, which is not installed: pip install {package}"
    assert not list(tmp_path.iterdir())


class Elsewhere(Logger):
    """A logger that keeps its numbers in no folder, as that of Weights & Biases does."""

    name, version = "elsewhere", 0

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.metrics: set[str] = set()

    def log_hyperparams(self, params: Any, *_: Any) -> None:
        self.settings |= params

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics |= set(metrics)


def test_runs_with_a_logger_of_others_keep_their_configuration_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{Elsewhere.__module__}.{Elsewhere.__qualname__}"
    quick = ["--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1", "--trainer.enable_checkpointing", "false"]
    both = f"[{{class_path: {name}}}, {{class_path: CSVLogger, init_args: {{save_dir: runs/mine}}}}]"
    for run, given in ((RUN, name), (RUN.with_name("version_1"), both)):
        logger = train("fit", [*SHORT, *quick, "--trainer.logger", given]).trainer.loggers[1]
        assert isinstance(logger, Elsewhere)
        assert {"train/loss", "val/accuracy", "lr"} <= logger.metrics
        assert logger.settings["model"] == "flatten_deit_tiny_patch16_224"
        assert {"config.yaml", "metrics.csv", "per_class.csv"} <= {path.name for path in run.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
