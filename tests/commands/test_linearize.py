"""`flatten linearize`: its stages, its report, what it takes up again, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from flatten_transformer import cli
from flatten_transformer.commands import trainings
from flatten_transformer.tasks.classification.model import build_model
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, load_model, save_model
from flatten_transformer.training import class_report, summary
from flatten_transformer.training.cli import train
from flatten_transformer.training.run_record import RunRecord

NAME = "vit_tiny_patch16_224"
SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
QUICK = ["--data.dataset", "digits", "--epochs", "[1,1,1]", "--sizes", "[]", "--data.num_workers", "0"]
STUDENT = Path("runs/linearize/stage3/student")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"]
    monkeypatch.setattr(trainings, "train", lambda stage, args: train(stage, [*args, *short]))
    for module in (summary, class_report):  # pictures take seconds
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    torch.manual_seed(0)
    model = build_model(NAME, SIZES, 10, 1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_model(
        Path("teacher.safetensors"), model, ModelInfo(NAME, SIZES, tuple("0123456789"), Preprocessing(16, 1, (0.5,), (0.5,)))
    )


def linearize(*options: str) -> int:
    return cli.main(["linearize", "--weights", "teacher.safetensors", *QUICK, *options])


def test_three_stages_end_in_a_student_and_a_report_and_are_not_trained_twice(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert linearize("--keep", "1", "--name", "student", "--sizes", "[16]", "--seed", "3") == 0
    printed = capfd.readouterr().out
    assert "stage 3 of 3" in printed
    assert f"See {STUDENT}/report.md, with pictures beside it" in printed
    report = json.loads((STUDENT / "report.json").read_text("utf-8"))
    assert list(report["stages"]) == ["untrained", "stage 1", "stage 2", "stage 3"]
    (linear,) = report["stages"]["stage 1"]["blocks"]
    student, info = load_model(STUDENT / "checkpoints" / "model.safetensors")
    kept = info.model_args["linearize"]["keep"]
    assert [f"blocks.{block}.attn" for block in range(2) if block not in kept] == [linear]
    assert student(torch.rand(1, 1, 16, 16)).shape == (1, 10)
    assert RunRecord(STUDENT).config["seed_everything"] == 3
    assert {path.name for path in STUDENT.glob("*.png")} >= {"errors.png", "times.png"}

    monkeypatch.setattr(trainings, "train", None)
    assert linearize("--keep", "1", "--name", "student", "--seed", "3") == 0
    assert json.loads((STUDENT / "report.json").read_text("utf-8")) == report  # with its times
    assert capfd.readouterr().err.count("is trained already") == 3


def test_a_student_of_images_alone_has_its_teachers_classes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("L", (20, 20), 60 * number).save(tmp_path / "images" / f"{number}.png")
    options = ["--data.root", "images", "--stages", "1", "--epochs", "[1]", "--sizes", "[]", "--data.num_workers", "0"]
    assert cli.main(["linearize", "--weights", "teacher.safetensors", *options]) == 0
    _, info = load_model(Path(f"runs/linearize/stage1/{NAME}_focused/checkpoints/model.safetensors"))
    assert list(info.class_names) == list("0123456789")
    assert info.preprocessing == Preprocessing(16, 1, [0.5], [0.5])


def test_a_larger_image_is_one_option_away() -> None:
    assert linearize("--stages", "1", "--epochs", "[1]", "--img_size", "32", "--name", "large") == 0
    student, info = load_model(Path("runs/linearize/stage1/large/checkpoints/model.safetensors"))
    assert info.preprocessing.img_size == 32
    assert student(torch.rand(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "4"], "--stages must be 1, 2 or 3, got 4"),
        (["--stages", "2"], "--epochs must hold a positive number for each of 2 stages, such as [1, 1], got [1, 1, 1]"),
        (["--data.dataset", "images", "--data.root", ".", "--stages", "3"], "holds no images"),
        (["--keep", "3"], 'keep must be indices of blocks, a number up to 2, or "auto", got 3'),
        (["--keep", "[2]"], "keep must hold indices of the 2 blocks, 0 to 1, got [2]"),
        (["--attention", "focussed"], "there is no attention 'focussed'"),
        (["--model", "deit_tiny_patch16_224"], "teacher.safetensors is vit_tiny_patch16_224, not deit_tiny_patch16_224"),
        (["--weights", "nowhere.pth"], "no file of weights nowhere.pth: check --weights"),
    ],
)
def test_wrong_arguments_end_in_one_line(options: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert linearize(*options) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("flatten: error")]
    assert message in line


def test_without_a_teacher_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["linearize"]) == 2
    assert "which model? Give --model, such as vit_small_patch16_224" in capfd.readouterr().err


def test_a_student_is_no_teacher(capfd: pytest.CaptureFixture[str]) -> None:
    assert linearize("--stages", "1", "--epochs", "[1]", "--name", "once") == 0
    file = "runs/linearize/stage1/once/checkpoints/model.safetensors"
    assert linearize("--weights", file) == 2
    assert f"{file} is linear already: give the weights of its teacher" in capfd.readouterr().err
