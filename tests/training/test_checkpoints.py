"""Checkpoints that are damaged, odd or of something else end in one line, or in the newest one that is whole."""

import errno
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from flatten_transformer.cli import main
from flatten_transformer.models.read_weights import read_tensors
from flatten_transformer.tasks.classification.model import build_model, weights_args
from flatten_transformer.training.checkpoints import AtomicCheckpointIO, best_beside, check_checkpoint, choose_checkpoint
from flatten_transformer.training.cli import train
from flatten_transformer.training.history import History
from flatten_transformer.training.lock import locked
from tests.runs import RECIPE

NAME = "flatten_deit_tiny_patch16_224"
SHORT = [
    *("--config", RECIPE),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
]
WHOLE = {
    "state_dict": {"weight": torch.zeros(9)},
    "global_step": 7,
    "epoch": 1,
    "loops": {},
    "callbacks": {},
    "optimizer_states": [],
    "lr_schedulers": [],
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder runs/ of a training of two epochs."""
    root = tmp_path_factory.mktemp("trained") / "runs"
    train("fit", [*SHORT, "--checkpoint.save_top_k", "-1", "--trainer.default_root_dir", str(root)])
    return root


@pytest.fixture
def folder(trained: Path) -> Path:
    """The folder of its checkpoints, copied here."""
    shutil.copytree(trained, "runs")
    return Path("runs") / NAME / "version_0" / "checkpoints"


def write(path: Path, **changes: Any) -> Path:
    AtomicCheckpointIO().save_checkpoint({**WHOLE, **changes}, path)
    return path


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_resume_goes_on_from_the_newest_whole_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert {path.name for path in folder.glob("*.ckpt")} == {"best-epoch=0.ckpt", "best-epoch=1.ckpt", "last.ckpt"}
    for name in ("last", "best-epoch=1"):
        halve(folder / f"{name}.ckpt")
    with caplog.at_level(logging.INFO):
        assert main(["fit", *SHORT, "--ckpt_path", "last"]) == 0
    said = f"Warning: {folder}/last.ckpt is damaged (cut short or changed). Going on from {folder}/best-epoch=0.ckpt"
    assert said in [record.message for record in caplog.records]
    again = torch.load(folder.parents[1] / "version_1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (again["epoch"], again["global_step"]) == (1, 2)


def test_the_newest_run_comes_first_then_the_most_steps(tmp_path: Path) -> None:
    old = write(tmp_path / "version_9" / "last.ckpt", global_step=99)
    new = tmp_path / "version_10"
    paths = [
        write(new / name, global_step=step) for name, step in (("last.ckpt", 9), ("a.ckpt", 8), ("b.ckpt", 7), ("c.ckpt", 6))
    ]
    paths[1].write_bytes(bytes(100))
    seen = []
    while (path := choose_checkpoint([new, old.parent], resume=True).path) is not None:
        seen.append(path.name if path.parent == new else "old")
        path.write_bytes(b"")
    assert seen == ["last.ckpt", "b.ckpt", "c.ckpt", "old"]
    assert len(choose_checkpoint([new, old.parent], resume=True).flaws) == 5


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_where_none_is_whole_all_are_named(stage: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in folder.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])
    assert main([stage, *SHORT, "--ckpt_path", "last"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"flatten: error: no checkpoint can be used: {folder}/last.ckpt is damaged (cut short or changed), ")
    assert said.count("is damaged") == 3
    assert said.endswith("; leave --ckpt_path out to begin anew, or give a path")


def test_a_damaged_one_that_was_named_is_refused_with_whole_ones_beside_it(folder: Path) -> None:
    halve(folder / "last.ckpt")
    beside = rf"{folder}/best-epoch=1.ckpt, {folder}/best-epoch=0.ckpt"
    with pytest.raises(ValueError, match=rf"last.ckpt is damaged \(cut short or changed\): whole beside it: {beside}"):
        train("test", [*SHORT, "--ckpt_path", str(folder / "last.ckpt")])


def test_damage_is_noticed_when_lightning_loads(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 7
    content = bytearray(path.read_bytes())
    content[20] ^= 1  # a date that no reader looks at
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last.ckpt is damaged \(its digest does not fit\)"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_damage_is_noticed_wherever_weights_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt")
    assert list(read_tensors(path)) == ["weight"]
    assert weights_args(path)["pretrained"]
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    readers: list[Callable[[Any], object]] = [read_tensors, weights_args]
    readers.append(partial(build_model, NAME, {"checkpoint_path": str(path)}, 2))
    for read in readers:
        with pytest.raises(ValueError, match=r"last.ckpt is damaged \(its digest does not fit\): copy it anew, or take another"):
            read(path)


@pytest.mark.parametrize(
    ("changes", "resumed", "judged"),
    [
        ({}, None, None),
        ({"state_dict": [1]}, "its state_dict does not hold tensors by name", "its state_dict does not hold tensors by name"),
        ({"state_dict": {"x": 1}}, "its state_dict does not hold", "its state_dict does not hold"),
        ({"epoch": "one"}, r"not what a training writes \(epoch\)", None),
        ({"callbacks": [1]}, r"not what a training writes \(callbacks\)", None),
    ],
)
def test_odd_contents_are_named(changes: dict[str, Any], resumed: str | None, judged: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", **changes)
    for resume, message in ((True, resumed), (False, judged)):
        if message is None:
            check_checkpoint(path, resume=resume)
        else:
            with pytest.raises(ValueError, match=message):
                check_checkpoint(path, resume=resume)


def test_weights_alone_can_be_judged_but_not_resumed(tmp_path: Path) -> None:
    torch.save({"state_dict": WHOLE["state_dict"]}, tmp_path / "last.ckpt")
    check_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=r"without epoch, .*, lr_schedulers \(it can be judged, but not resumed\): give --ckpt_path"
    ):
        check_checkpoint(tmp_path / "last.ckpt", resume=True)


class Harm:
    """What a pickle made to do harm runs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    torch.save({**WHOLE, "callbacks": {"x": Harm()}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of a training"):
        check_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("loops", {}, r"it is not what a training writes \(KeyError: 'fit_loop'\)"),
        ("callbacks", {"History": 3}, "it is not what a training writes"),
        ("ImageData", {}, r"it is not what a training writes \(KeyError: 'seed'\)"),
        ("flatten_transformer.random", {"states": [3], "batches": 1}, "it is not what a training writes"),
    ],
)
def test_whatever_cannot_be_taken_up_ends_in_one_line(
    entry: str, value: Any, message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = torch.load(folder / "last.ckpt", weights_only=True)
    AtomicCheckpointIO().save_checkpoint({**kept, entry: value}, "odd.ckpt")
    assert main(["fit", *SHORT, "--ckpt_path", "odd.ckpt", "--trainer.max_epochs", "3"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("flatten: error: odd.ckpt cannot be used: ")
    assert message.replace("\\", "") in said[-1]
    assert not any("Traceback" in line for line in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_epochs", "1"], "the checkpoint has done 2 epochs, and trainer.max_epochs is 1: raise it"),
        (["--model.optim.opt", "sgd"], "the checkpoint is of a training by adamw, and here it is sgd"),
        (["--model.ema_decay", "0.9"], "the checkpoint was trained without a moving average, and this is a training with one"),
    ],
)
def test_a_training_by_another_recipe_does_not_go_on(options: list[str], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"last.ckpt cannot be used: {message}"):
        train("fit", [*SHORT, "--ckpt_path", str(folder / "last.ckpt"), *options])


def test_a_training_that_is_done_stays_so(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train("fit", [*SHORT, "--ckpt_path", "last"]).trainer.global_step == 2
    assert "Nothing is left to train: 2 epochs are done" in capfd.readouterr().err
    assert [path.name for path in folder.parents[1].iterdir()] == ["version_0"]


def test_classes_are_compared_where_a_checkpoint_is_judged(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept = torch.load(folder / "last.ckpt", weights_only=True)
    assert kept["flatten_transformer"]["class_names"] == list("0123456789")
    kept["flatten_transformer"]["class_names"] = list("1023456789")
    AtomicCheckpointIO().save_checkpoint(kept, folder / "last.ckpt")
    for stage in ("test", "fit"):
        assert main([stage, *SHORT, "--ckpt_path", "last"]) == 2
        assert "the checkpoint has the data's classes in another order (1, 0, 2, 3, 4" in capfd.readouterr().err


def test_a_folder_of_another_training_is_not_overwritten(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here = ["fit", *SHORT, "--checkpoint.dirpath", str(folder), "--trainer.max_epochs", "3"]
    before = (folder / "last.ckpt").read_bytes()
    assert main(here) == 2
    assert f"{folder} holds another training, which this one would overwrite: go on with --ckpt_path" in capfd.readouterr().err
    assert (folder / "last.ckpt").read_bytes() == before
    with locked([folder]):
        assert main([*here, "--ckpt_path", "last"]) == 2
        assert main(["fit", *SHORT, "--ckpt_path", "last"]) == 2
    assert capfd.readouterr().err.count("is being written to by another training") == 2
    assert main([*here, "--ckpt_path", "last"]) == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 2


def test_logs_of_another_training_are_not_overwritten(capfd: pytest.CaptureFixture[str]) -> None:
    log = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs", "--trainer.logger.version", "0"]
    earlier = Path("logs/lightning_logs/version_0")
    earlier.mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv"):
        (earlier / name).write_text("kept")
    assert main(["fit", *SHORT[:-2], *log]) == 2
    assert {path.read_text() for path in earlier.iterdir()} == {"kept"}
    assert "logs/lightning_logs/version_0 holds another training" in capfd.readouterr().err


def test_what_a_killed_training_left_half_written_is_removed(folder: Path) -> None:
    draft = folder / ".last.ckpt.0123abcd.tmp"
    draft.touch()
    train("fit", [*SHORT, "--ckpt_path", "last"])
    assert not draft.exists()


def test_a_full_disk_names_the_log(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def full(self: CSVLogger) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(CSVLogger, "save", full)
    assert main(["fit", *SHORT[:-2]]) == 2
    log = f"runs/{NAME}/version_0/metrics.csv"
    assert capfd.readouterr().err.splitlines()[-1] == f"flatten: error: [Errno 28] No space left on device: '{log}'"


@pytest.mark.parametrize("save_top_k", [1, 2, -1])
def test_of_equal_epochs_the_last_is_the_best(save_top_k: int) -> None:
    still = ["--lr", "1e-30", "--model.optim.min_lr", "0", "--trainer.max_epochs", "3", "--keep", str(save_top_k)]
    cli = train("fit", [*SHORT, *still])
    folder = Path("runs") / NAME / "version_0" / "checkpoints"
    callbacks: list[object] = cli.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it, unannotated
    accuracies = {row["val/accuracy"] for each in callbacks if isinstance(each, History) for row in each.rows}
    assert len(accuracies) == 1
    assert len(list(folder.glob("best-*.ckpt"))) == (3 if save_top_k == -1 else save_top_k)
    assert best_beside(folder / "last.ckpt").name == "best-epoch=2.ckpt"
    callback = cli.trainer.checkpoint_callback
    assert callback is not None
    assert callback.state_key.startswith("ModelCheckpoint{'monitor': 'val/accuracy'")  # as in earlier runs
