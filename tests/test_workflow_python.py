"""The one door from Python: train, judge and load, several times in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

import flatten_transformer
from flatten_transformer.data.digits import Digits

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
QUICK: dict[str, Any] = {"model.model_args": SIZES, "img_size": 16, "trainer.enable_progress_bar": False, "epochs": 1}
QUICK |= {"trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_model_is_trained_judged_and_loaded_and_again_in_the_same_process() -> None:
    first = flatten_transformer.train("digits/flatten_deit", lr=1e-3, seed=1, **QUICK)
    second = flatten_transformer.train("digits/flatten_deit", name="second", **QUICK)
    assert [run.folder and run.folder.as_posix() for run in (first, second)] == [
        "runs/digits/flatten_deit/version_0",
        "runs/digits/flatten_deit/second",
    ]
    assert first.metrics["epoch"] == 1
    metrics = flatten_transformer.evaluate(first)
    assert 0 <= metrics["test/accuracy"] <= 1
    assert all(name.startswith("test/") for name in metrics)
    assert first.folder is not None
    last = flatten_transformer.evaluate(first.folder / "checkpoints" / "last.ckpt")
    assert last == metrics  # of one epoch, which is the best and the last
    validated = flatten_transformer.evaluate(first.folder, "val")
    assert validated["val/accuracy"] == pytest.approx(first.metrics["val/accuracy"])
    model, info = flatten_transformer.load_model(first.model_file)
    image, _ = Digits("test", 16)[0]
    assert model(info.preprocessing(image)[None]).shape == (1, 10)
    assert not torch.equal(next(model.parameters()), next(flatten_transformer.load_model(second.model_file)[0].parameters()))


def test_a_training_that_keeps_nothing_says_so() -> None:
    run = flatten_transformer.train("digits/flatten_deit", **QUICK, **{"trainer.fast_dev_run": True})
    assert run.folder is None
    assert "val/accuracy" in run.metrics
    with pytest.raises(ValueError, match="this training kept nothing"):
        _ = run.model_file


def test_a_wrong_override_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"did you mean --lr \(--model\.optim\.lr\)"):
        flatten_transformer.train("digits/flatten_deit", learning_rate=1e-3)
    with pytest.raises(FileNotFoundError, match="no recipe and no file 'digts'"):
        flatten_transformer.train("digts")
    with pytest.raises(FileNotFoundError, match="no run nowhere: give the folder of a run"):
        flatten_transformer.evaluate("nowhere")
    with pytest.raises(ValueError, match="split must be test or val, got 'train'"):
        flatten_transformer.evaluate(".", "train")  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["help", "help_all", "help-all", "h", "version", "print_config", "config"])
def test_words_of_the_command_line_are_no_overrides(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").touch()
    options: dict[str, Any] = {word: True}
    for call in (flatten_transformer.train, flatten_transformer.evaluate):
        with pytest.raises(ValueError, match=f"^{word} belongs to the command line: leave it out"):
            call(".", **options)
    assert capsys.readouterr().out == ""


def test_a_stop_is_a_keyboard_interrupt_and_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise SystemExit(130)

    monkeypatch.setattr("flatten_transformer.training.cli.train", stopped)
    with pytest.raises(KeyboardInterrupt, match="has saved its state"):
        flatten_transformer.train("digits/flatten_deit")
