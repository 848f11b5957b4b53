"""The recipes for images of one's own learn from a handful of them, in every format, from any folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flatten_transformer import cli
from flatten_transformer.tasks.model_file import load_model
from tests.box_folders import NAMES, WRITERS
from tests.fixtures import DrawFolder

BACKBONE = "{depths: [1, 1, 1, 1], embed_dims: [8, 16, 24, 32], num_heads: [1, 2, 3, 4], mlp_ratios: [2, 2, 2, 2], img_size: 64}"
SHORT = ["--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
SHORT += ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--data.batch_size", "16"]
SHORT += ["--model.model_args.backbone_args", BACKBONE]
DETECTOR = {"fpn_channels": "16", "box_dim": "16", "min_size": "48", "max_size": "64", "proposals": "20"}
SMALL = ["--data.sizes", "[48]", "--data.max_size", "64"]
SMALL += [word for name, value in DETECTOR.items() for word in (f"--model.model_args.{name}", value)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(recipe: str, root: Path, *options: str) -> Path:
    """Train by a recipe with fewer images than its batch holds, and return the model."""
    assert cli.main(["fit", "--config", recipe, "--data.root", str(root), *SHORT, *options]) == 0
    return Path(f"runs/{recipe}/version_0/checkpoints/model.safetensors")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_detector_learns_from_twelve_images_and_finds_by_name(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = WRITERS[kind](tmp_path / "mine", {"": 15})
    with caplog.at_level("INFO"):
        path = trained("detect", root, *SMALL)
    assert "12 training images do not fill a batch of 16: each step sees 12" in caplog.text
    info = load_model(path)[1]
    assert (list(info.class_names), info.name) == (list(NAMES), "faster_rcnn")
    image = next(root.rglob("*.jpg"))
    assert cli.main(["predict", str(image), "--checkpoint", str(path), "--output", "found"]) == 0
    assert Path("found/detections.json").is_file()
    capfd.readouterr()


def test_a_segmenter_learns_from_twelve_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "mine"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(15):
        mask = np.zeros((32, 48), np.uint8)
        mask[4:20, number : number + 20] = 1
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
        Image.fromarray(mask * 200).convert("RGB").save(root / "images" / f"{number}.jpg")
    (root / "classes.txt").write_text("table\ncup\n")
    sizes = ["--data.crop_size", "32", "--data.short_side", "32", "--data.long_side", "64"]
    with caplog.at_level("INFO"):
        path = trained("segment", root, *sizes)
    assert "12 training images do not fill a batch of 16: each step sees 12" in caplog.text
    assert load_model(path)[1].class_names == ["table", "cup"]


def test_a_classifier_learns_from_an_odd_number_of_images_fewer_than_its_batch(
    draw_folder: DrawFolder, caplog: pytest.LogCaptureFixture
) -> None:
    root = draw_folder({"cat": 8, "dog": 9})
    sizes = "{img_size: 32, embed_dim: 8, depths: [1, 1], num_heads: [1, 2], window_size: 4, focusing_factor: 3, attn_types: LL}"
    options = [*SHORT[:-2], "--model.model_args", sizes, "--data.img_size", "32", "--model.mixing.mixup_alpha", "0.8"]
    with caplog.at_level("INFO"):
        assert cli.main(["fit", "--config", "finetune", "--data.root", str(root), *options]) == 0
    assert "13 training images do not fill a batch of 16: each step sees 13" in caplog.text
