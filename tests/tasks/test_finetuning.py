import logging
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from flatten_transformer import cli
from flatten_transformer.tasks.model_file import load_model

TINY = "{img_size: 32, embed_dim: 8, depths: [1, 1], num_heads: [1, 2], window_size: 4, focusing_factor: 3, attn_types: LL}"
OPTIONS = ["--model.model_args", TINY, "--data.img_size", "32", "--data.num_workers", "0", "--data.batch_size", "8"]
OPTIONS += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
OPTIONS += ["--trainer.logger", "false"]  # which draws no pictures either


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty drawn animals: the cats are round, the dogs are square."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    for name, shape in (("cat", ImageDraw.ImageDraw.ellipse), ("dog", ImageDraw.ImageDraw.rectangle)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(10):
            image = Image.new("RGB", (40, 36), "white")
            shape(ImageDraw.Draw(image), (2 + number, 3, 20 + number, 30), fill=(20 * number, 90, 10))
            image.save(tmp_path / "pets" / name / f"{number}.jpg")
    return tmp_path / "pets"


def test_a_fit_begins_with_the_weights_of_a_file(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--config", "finetune", "--data.root", str(pets), *OPTIONS, "--model.optim.lr", "1e-12"]
    fit += ["--model.optim.min_lr", "0"]
    assert cli.main([*fit, "--seed_everything", "1"]) == 0
    first = Path("runs/finetune/version_0/checkpoints/model.safetensors")
    assert cli.main([*fit, "--seed_everything", "2", "--model.pretrained", str(first)]) == 0
    begun, _ = load_model(first)
    ended, _ = load_model(Path("runs/finetune/version_1/checkpoints/model.safetensors"))
    body = {name: tensor for name, tensor in begun.state_dict().items() if not name.startswith("head.")}  # which is always new
    torch.testing.assert_close({name: ended.state_dict()[name] for name in body}, body)
    capsys.readouterr()
    assert cli.main([*fit, "--model.pretrained", "none.pth"]) == 2
    assert "no file of weights none.pth: check the path" in capsys.readouterr().err


def test_twenty_images_of_two_classes_are_learned_and_told_apart_by_name(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--config", "finetune", "--data.root", str(pets), *OPTIONS]) == 0
    checkpoints = Path("runs/finetune/version_0/checkpoints")
    assert {path.name for path in checkpoints.iterdir()} == {
        "best-epoch=0.ckpt",
        "last.ckpt",
        "last.safetensors",
        "model.safetensors",
    }
    _, info = load_model(checkpoints / "model.safetensors")
    assert (info.class_names, info.preprocessing.in_chans) == (["cat", "dog"], 3)
    capsys.readouterr()
    assert cli.main(["predict", str(pets / "cat/0.jpg"), "--checkpoint", str(checkpoints / "model.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "cat (" in printed
    assert "dog (" in printed


def test_a_damaged_image_stops_a_fit_in_one_line_and_can_be_skipped(
    pets: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        (pets / name / "3.jpg").write_bytes((pets / name / "3.jpg").read_bytes()[:400])
    command = ["fit", "--config", "finetune", "--data.root", str(pets), *OPTIONS]
    assert cli.main(command) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("flatten: error: ")
    assert "3.jpg cannot be read as an image" in last
    with caplog.at_level(logging.INFO):
        assert cli.main([*command, "--data.on_bad_image", "skip"]) == 0
    assert "images skipped because they cannot be read: " in caplog.text
