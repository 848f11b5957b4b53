"""Runs have names, `last` and `best` mean those of one recipe and name, and a start that fails leaves nothing."""

import logging
from pathlib import Path

import pytest
import torch

from flatten_transformer.cli import main
from flatten_transformer.data.scenes import SCENES
from flatten_transformer.training.cli import train
from flatten_transformer.training.recipes import find_recipe, recipe_names
from flatten_transformer.training.run_folder import folder_of_recipe

SIZES = "{img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}"
SMALL = f"""
seed_everything: 0
model: {{name: flatten_deit_tiny_patch16_224, model_args: {SIZES}}}
data: {{img_size: 16}}
trainer: {{max_epochs: 1, limit_train_batches: 1, limit_val_batches: 1, limit_test_batches: 1, accelerator: cpu}}
"""
FIT = ["fit", "--config", "small.yaml", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]


@pytest.fixture(autouse=True)
def _in_a_folder_with_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("small", "other"):
        Path(f"{name}.yaml").write_text(SMALL)


def runs(recipe: str = "small") -> list[str]:
    return sorted(path.name for path in Path("runs", recipe).iterdir())


def test_a_run_bears_its_name_and_a_second_of_that_name_leaves_it_alone() -> None:
    assert main([*FIT, "--name", "first-try"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.is_file()}
    assert main([*FIT, "--name", "first-try"]) == 0
    assert main(FIT) == 0
    assert runs() == ["first-try", "first-try_2", "version_0"]
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("name", ["a/b", "..", "", "version_3"])
def test_a_name_is_no_path_and_no_version(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, f"--name={name}"]) == 2
    assert "--name must be the name of a new folder" in capfd.readouterr().err
    assert not Path("runs").exists()


def test_no_recipe_keeps_its_runs_where_the_scenes_lie() -> None:
    for name in recipe_names():
        folder = folder_of_recipe(find_recipe(name), Path("runs"))
        assert SCENES not in (folder, *folder.parents)
        assert folder not in SCENES.parents


def test_last_is_that_of_this_recipe_and_name(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    for more in (["--name", "mine"], [], ["--config", "other.yaml"], []):
        assert main([*FIT, *more]) == 0
    asked = {
        "small/mine": ["--config", "small.yaml", "--name", "mine"],
        "small/version_1": ["--config", "small.yaml"],
        "other/version_0": ["--config", "other.yaml"],
    }
    with caplog.at_level(logging.INFO):
        for run, options in asked.items():
            caplog.clear()
            assert main(["test", *options, "--ckpt_path", "last"]) == 0
            assert f"Judging runs/{run}/checkpoints/last.ckpt" in caplog.text
    assert main(["test", "--config", "small.yaml", "--name", "yours", "--ckpt_path", "last"]) == 2
    assert "no last.ckpt of runs/small/yours (there is --name mine): train first" in capfd.readouterr().err


def test_the_configuration_of_a_run_means_its_own_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert main(FIT[:-2]) == 0
    with caplog.at_level(logging.INFO):
        assert main(["test", "--config", "runs/small/version_1/config.yaml", "--ckpt_path", "last"]) == 0
    assert "Judging runs/small/version_1/checkpoints/last.ckpt" in caplog.text
    without_recipe = train("test", ["--ckpt_path", "runs/small/version_0/checkpoints/last.ckpt"])
    assert without_recipe.config.model.model_args["embed_dim"] == 16


def test_best_is_the_checkpoint_that_the_result_recommends() -> None:
    rising = ["--checkpoint.monitor", "lr", "--checkpoint.mode", "min"]  # in warm-up: the first epoch is the best
    train("fit", [*FIT[1:-2], "--epochs", "2", *rising])
    best = train("test", ["--config", "runs/small/version_0/config.yaml", "--ckpt_path", "best"]).config.ckpt_path
    assert Path(best).name == "best-epoch=0.ckpt"
    assert torch.load(best, weights_only=True)["epoch"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        ["--data.dataset", "folder", "--data.root", "missing"],
        ["--model", "resnet81"],
        ["--model.optim.lr", "-1"],
        ["--grad_checkpointing", "true", "--model", "dla46_c", "--model.model_args", "{}", "--img_size", "32"],
        ["--trainer.precision", "bf17"],
    ],
    ids=["data", "model", "rate", "checkpointing", "precision"],
)
def test_a_start_that_fails_leaves_no_folder(wrong: list[str]) -> None:
    assert main([*FIT[:-2], *wrong]) == 2
    assert not Path("runs").exists()


def test_a_start_that_fails_removes_nothing_of_others() -> None:
    assert main(FIT) == 0
    Path("runs/notes.txt").write_text("mine")
    assert main([*FIT, "--model", "resnet81"]) == 2
    assert runs() == ["version_0"]
    assert Path("runs/notes.txt").exists()


def test_a_run_that_keeps_its_checkpoints_elsewhere_and_no_logs_has_no_folder() -> None:
    assert main([*FIT, "--checkpoint.dirpath", "elsewhere"]) == 0
    assert Path("elsewhere/model.safetensors").is_file()
    assert not Path("runs").exists()


def test_what_a_diverged_run_learned_stays() -> None:
    assert main([*FIT, "--epochs", "3", "--lr", "1e30", "--model.optim.warmup_epochs", "0", "--model.optim.min_lr", "0"]) == 2
    kept = [path.name for path in Path("runs").rglob("*.ckpt")]
    assert kept or not Path("runs").exists()


FALLING = ["--checkpoint.monitor", "train/loss", "--checkpoint.mode", "max"]  # so that the first epoch is the best
FALLING += ["--lr", "0.01", "--model.optim.warmup_epochs", "0", "--trainer.limit_train_batches", "8"]


def test_the_best_epoch_stays_the_best_when_a_run_is_resumed(capfd: pytest.CaptureFixture[str]) -> None:
    train("fit", [*FIT[1:-2], "--name", "first", *FALLING])
    assert "before this start" not in capfd.readouterr().err
    train("fit", [*FIT[1:-2], "--name", "first", *FALLING, "--epochs", "2", "--ckpt_path", "last"])
    assert "The best epoch lies before this start: what is shown of each class is of the last" in capfd.readouterr().err
    assert runs() == ["first", "first_2"]
    first, second = (Path("runs/small", name, "checkpoints") for name in runs())
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    best = train("test", ["--config", "runs/small/first_2/config.yaml", "--ckpt_path", "best"]).config.ckpt_path
    assert Path(best) == second / "best-epoch=0.ckpt"
    (second / "best-epoch=0.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="the checkpoint of the best epoch is not beside"):
        train("test", ["--config", "runs/small/first_2/config.yaml", "--ckpt_path", "best"])


def test_best_is_not_that_of_a_part_of_the_training(capfd: pytest.CaptureFixture[str]) -> None:
    train("fit", [*FIT[1:-2], *FALLING, "--keep", "0"])
    train("fit", [*FIT[1:-2], *FALLING, "--epochs", "2", "--ckpt_path", "last"])
    assert main(["test", "--config", "runs/small/version_1/config.yaml", "--ckpt_path", "best"]) == 2
    assert "the checkpoint of the best epoch is not beside runs/small/version_1" in capfd.readouterr().err
