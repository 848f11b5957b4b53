import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from flatten_transformer.tasks.classification.data import ImageData
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.training.callbacks import PrintData, ReportSkipped, SaveModel
from flatten_transformer.training.cli import train

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(("shown", "ending"), [(1, "0.png …)"), (2, "1.png)")])
def test_what_was_skipped_is_said_once(shown: int, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, bad in (("train", 2), ("val", 1), ("test", 0)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
                if name == "cat" and number < bad:
                    (folder / f"{number}.png").write_text("not an image")
    data = ImageData("folder", root=tmp_path, img_size=16, on_bad_image="skip")
    torch.manual_seed(0)
    task = ClassificationTask(model_args=TINY, num_classes=2, in_chans=3)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[ReportSkipped(shown)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    with caplog.at_level(logging.INFO):
        trainer.fit(task, datamodule=data)
        trainer.test(task, datamodule=data, verbose=False)
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(lines) == 2, lines
    assert "val images skipped because they cannot be read: 1 (" in lines[0]
    assert "train images skipped because they cannot be read: 2 (" in lines[1]
    assert lines[1].endswith(ending)


@pytest.mark.parametrize(
    ("mode", "wanted"), [("max", [True, True, False, True, True]), ("min", [True, False, True, False, False])]
)
def test_the_best_model_so_far_is_kept_whichever_way_is_better(mode: str, wanted: list[bool], tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode=mode)
    data = ImageData("digits", img_size=16)
    task = ClassificationTask(model_args=TINY, num_classes=10, in_chans=1)
    trainer: Any = SimpleNamespace(checkpoint_callback=checkpoints, is_global_zero=True, callback_metrics={}, datamodule=data)
    task.trainer = trainer
    save, path, written = SaveModel(), tmp_path / "model.safetensors", []
    for value in (0.2, 0.5, 0.1, 0.6, 0.6):
        trainer.callback_metrics["val/accuracy"] = torch.tensor(value)
        path.unlink(missing_ok=True)
        save.on_train_epoch_end(trainer, task)
        written.append(path.exists())
        resumed = SaveModel()
        resumed.load_state_dict(save.state_dict())
        save = resumed
    assert written == wanted


def test_what_the_data_hold_is_told_before_anything_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    data, callback = ImageData("digits", img_size=8), PrintData()
    trainer: Any = SimpleNamespace(datamodule=data, is_global_zero=True)
    for stage in ("fit", "test"):
        data.setup(stage)  # as Lightning does first
        callback.setup(trainer, SimpleNamespace(), stage)  # type: ignore[arg-type]  # the model does not matter
    told = capsys.readouterr().err
    assert "1,257" in told
    assert told.splitlines()[-1] == "360 test images of 10 classes, nothing left out"
    trainer.is_global_zero = False
    PrintData().setup(trainer, SimpleNamespace(), "fit")  # type: ignore[arg-type]  # the model does not matter
    assert capsys.readouterr().err == ""


def test_a_training_tells_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model.model_args={img_size: 8, patch_size: 4, embed_dim: 8, depth: 1, num_heads: 1}", "--data.img_size=8"]
    quick = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    train("fit", ["--config", "digits/flatten_deit", *small, *quick])
    told = capsys.readouterr().err
    assert told.index("Data") < told.index("Left out: nothing")
    assert "┃ class (images) ┃ train ┃ val ┃" in told


def test_the_best_model_moves_on_with_a_resumed_run(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
    (tmp_path / "old" / "model.safetensors").write_bytes(b"the best so far")
    checkpoints = ModelCheckpoint(tmp_path / "new", monitor="val/accuracy", mode="max")
    trainer: Any = SimpleNamespace(checkpoint_callback=checkpoints, is_global_zero=True, ckpt_path=tmp_path / "old" / "last.ckpt")
    save = SaveModel()
    save.load_state_dict({"best": 0.5})
    save.on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]  # the model does not matter
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == b"the best so far"
    assert save.best == 0.5
    (tmp_path / "old" / "best.safetensors").write_bytes(b"of an older version")
    save.on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == b"of an older version"
    trainer.ckpt_path = tmp_path / "old" / "best-epoch=3.ckpt"  # whose best may be another
    save.on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    assert save.best is None
