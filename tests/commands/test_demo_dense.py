import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from flatten_transformer import cli
from flatten_transformer.commands import demo, demo_dense, demo_runs, trainings
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.training.cli import train
from flatten_transformer.training.interruption import Interrupted
from tests.scenes import few_scenes


def run_in_this_process(command: list[str], check: bool) -> None:
    """Take the place of subprocess.run: starting Python and importing everything anew takes 10 s."""
    assert check
    assert command[:3] == [sys.executable, "-m", "flatten_transformer"]
    assert cli.main(command[3:]) == 0


def test_the_demo_trains_judges_draws_and_uses_both_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few_scenes(tmp_path, monkeypatch)
    quick = ["--trainer.limit_train_batches=1", "--trainer.enable_progress_bar=false"]
    monkeypatch.setattr(trainings, "train", lambda stage, args: train(stage, [*args, *quick]))
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run_in_this_process))
    demo_dense.demo_dense(scenes=2, max_epochs=1)
    printed = capfd.readouterr().out
    assert all(words in printed for words in ("Mask R-CNN", "Semantic FPN", "AP50", "mIoU"))
    (picture,) = tmp_path.rglob("scenes.png")
    assert read_image(picture).width > 4 * 3 * 128
    assert 2 * 3 * 96 < read_image(picture).height < 3 * 3 * 96
    for name in ("detections.json", "masks/test_scene_0.png", "overlays/test_scene_0.png"):
        assert list(tmp_path.rglob(f"predictions/{name}"))


def test_a_demo_that_is_stopped_says_what_is_done_and_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def trained(recipe: str, options: Sequence[str], *, name: str, resume: bool) -> Path:
        if "semantic_fpn" in recipe:
            raise Interrupted(signal.SIGINT)
        return Path("runs")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_runs, "trained", trained)
    monkeypatch.setattr(demo_runs, "judge", lambda folder: SimpleNamespace(model_file=folder / "model.safetensors"))
    done = "flatten: stopped by SIGINT: 1 of 2 trainings are done, runs/model.safetensors; the same command"
    assert cli.main(["demo-dense"]) == 130
    assert capfd.readouterr().err == f"{done} goes on from there\n"
    assert cli.main(["demo-dense", "--resume", "false"]) == 130
    assert capfd.readouterr().err == f"{done} without --resume false goes on from there\n"
