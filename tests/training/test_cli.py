from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]  # ships no annotations
from lightning.pytorch.callbacks import ModelCheckpoint

from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.tasks.model_file import load_model
from flatten_transformer.training.cli import TrainingCLI, train
from flatten_transformer.utils.stopping import UnavailableError
from tests.runs import RECIPE

SIZES = "{img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}"
SHORT = ["--config", RECIPE, "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
SHORT += ["--model.model_args", SIZES, "--data.img_size", "16"]
MODELS = {"model.safetensors", "last.safetensors"}
PICTURES = {"curves.png", "confusion.png", "mistakes.png", "per_class.png", "per_class.csv"}
SHORT += ["--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "false", "--seed_everything", "0"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_fit_keeps_configuration_curves_checkpoints_and_model() -> None:
    train("fit", [*SHORT, "--model.ema_decay", "0.9"])
    run = Path("runs/flatten_deit_tiny_patch16_224/version_0")
    assert (run / "config.yaml").is_file()
    assert "val/accuracy" in (run / "metrics.csv").read_text()
    assert list(run.glob("events.out.tfevents*"))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best-epoch=0.ckpt", "last.ckpt", *MODELS}


def test_the_saved_model_is_the_average_of_the_trained_one() -> None:
    cli = train("fit", [*SHORT, "--model.ema_decay", "0.9", "--trainer.logger", "false"])
    assert isinstance(cli.trainer.checkpoint_callback, ModelCheckpoint)
    model, info = load_model(Path(str(cli.trainer.checkpoint_callback.dirpath)) / "model.safetensors")
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(model(images), cli.model.ema.module.eval()(images), rtol=0, atol=0)
    assert not torch.equal(model(images), cli.model.model.eval()(images))
    assert (list(info.class_names), info.preprocessing) == (list("0123456789"), cli.datamodule.preprocessing)


def test_a_later_run_leaves_an_earlier_one_alone() -> None:
    train("fit", SHORT)
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()}
    train("fit", SHORT)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert sorted(path.name for path in Path("runs/flatten_deit_tiny_patch16_224").iterdir()) == ["version_0", "version_1"]


def test_a_run_goes_on_from_its_checkpoint_and_its_configuration() -> None:
    train("fit", SHORT)
    run = Path("runs/flatten_deit_tiny_patch16_224/version_0")
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    cli = train("fit", ["--config", str(run / "config.yaml"), "--ckpt_path", checkpoint, "--trainer.max_epochs", "3"])
    assert cli.trainer.global_step == 6
    assert cli.trainer.current_epoch == 3
    assert (run.with_name("version_1") / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_checkpoint_is_judged_without_leaving_a_trace(stage: Any, tmp_path: Path) -> None:
    train("fit", SHORT)
    before = sorted(Path("runs").rglob("*"))
    judged = train(stage, [*SHORT, "--ckpt_path", str(next(Path("runs").rglob("last.ckpt")))])
    fresh = train(stage, SHORT)
    name = "val/loss" if stage == "validate" else "test/loss"
    assert judged.trainer.callback_metrics[name] != fresh.trainer.callback_metrics[name]
    assert sorted(Path("runs").rglob("*")) == before


def test_a_metric_to_choose_by_that_does_not_exist_is_refused_before_the_first_epoch() -> None:
    with pytest.raises(ValueError, match=r"checkpoint.monitor is no metric .* got 'val/acuracy': did you mean val/accuracy"):
        train("fit", [*SHORT, "--checkpoint.monitor", "val/acuracy"])
    assert not Path("runs").exists()
    assert train("fit", [*SHORT, "--checkpoint.monitor", "train/loss"]).trainer.current_epoch == 1


def test_too_little_memory_is_answered_with_what_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …")

    monkeypatch.setattr(ClassificationTask, "training_step", fill)
    with pytest.raises(UnavailableError, match=r"^CUDA out of memory: take fewer images at once, by --data.device_batch_size"):
        train("fit", SHORT)


def test_the_run_bears_the_name_of_its_recipe() -> None:
    Path("mine.yaml").write_text(yaml.safe_dump({"model": {"model_args": yaml.safe_load(SIZES)}}))
    for config, folder in {"mine.yaml": "runs/mine", "digits/flatten_deit": "runs/digits/flatten_deit"}.items():
        cli = TrainingCLI("fit", ["--config", config, "--seed", "0"])
        assert Path(str(cli.trainer.log_dir)) == Path(folder) / "version_0"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--trainer.logger", "false"], {"best-epoch=0.ckpt", "last.ckpt", *MODELS}),
        (["--trainer.enable_checkpointing", "false"], {"config.yaml", "metrics.csv", "hparams.yaml", "result.json", *PICTURES}),
        (["--trainer.fast_dev_run", "true"], set()),
    ],
    ids=["no logger", "no checkpoints", "a trial run"],  # not by str: a set has no order
)
def test_what_is_not_wanted_is_not_kept(options: list[str], kept: set[str]) -> None:
    train("fit", [*SHORT, *options])
    files = {path.name for path in Path().rglob("*") if path.is_file() and not path.name.startswith("events")}
    assert files == kept


def test_checkpointing_can_be_configured() -> None:
    train("fit", [*SHORT, "--checkpoint.filename", "mine", "--checkpoint.save_last", "false", "--trainer.logger", "false"])
    assert {path.name for path in Path("runs").rglob("*.ckpt")} == {"mine.ckpt"}


def test_the_screen_stays_free_of_advertisements_and_warnings(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    train("fit", SHORT)
    printed = capfd.readouterr()
    assert "Tip" not in printed.err + printed.out + caplog.text
    assert "Warning" not in printed.err + printed.out
    assert not recwarn.list
