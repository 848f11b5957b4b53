"""The recipes of the paper's ADE20K tables, against the settings of the baselines they follow."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from flatten_transformer.tasks.segmentation.data import SegmentationData
from flatten_transformer.tasks.segmentation.task import SegmentationTask
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.recipes import find_recipe, recipe_names
from tests.tasks.segmentation.conftest import PVT


class Row(NamedTuple):
    """What a segmenter is trained with, on 8 GPUs."""

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    power: float
    warmup_steps: int
    drop_path: float
    reported: str  # by the paper


PAPER = {
    "upernet_flatten_swin_tiny_160k": Row(160_000, 16, 6e-5, 0.01, 1.0, 1500, 0.3, "mIoU 44.82"),
    "upernet_flatten_swin_small_160k": Row(160_000, 16, 6e-5, 0.01, 1.0, 1500, 0.3, "mIoU 48.14"),
    "semantic_fpn_flatten_pvt_tiny_40k": Row(40_000, 32, 2e-4, 1e-4, 0.9, 0, 0.1, "mIoU 37.21"),
}
IMAGES = 20_210  # of ADE20K's training


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (80, 60), (90 * index, 40, 99)).save(root / "images" / split / f"{index}.jpg")
            mask = np.arange(80 * 60).reshape(60, 80) // 40 % 151
            Image.fromarray(mask.astype(np.uint8)).save(root / "annotations" / split / f"{index}.png")
    return root


def parsed(name: str, root: Path, *more: str) -> TrainingCLI:
    """Build everything a recipe names, without the authors' weights."""
    own = ["--data.root", str(root), "--data.num_workers", "0", "--model.model_args.pretrained", "false"]
    own += ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    return TrainingCLI("fit", ["--config", f"ade20k/{name}", *own, *more])


def test_every_recipe_is_in_the_table() -> None:
    assert {f"ade20k/{name}" for name in PAPER} == {name for name in recipe_names() if name.startswith("ade20k/")}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_trains_as_its_baseline_is_trained(name: str, ade20k: Path) -> None:
    row = PAPER[name]
    with torch.device("meta"):
        cli = parsed(name, ade20k)
    task, data, trainer = cli.model, cli.datamodule, cli.config.trainer
    assert isinstance(task, SegmentationTask)
    assert isinstance(data, SegmentationData)
    assert (task.optim.lr, task.optim.weight_decay, task.optim.power) == (row.lr, row.weight_decay, row.power)
    assert round(task.optim.warmup_epochs * (IMAGES // 16)) == pytest.approx(row.warmup_steps, abs=1)
    assert (trainer.max_steps, trainer.max_epochs, task.optim.min_lr) == (row.steps, -1, 0.0)
    assert trainer.sync_batchnorm == (task.name == "upernet")
    assert task.model_args["backbone_args"] == {"pretrained": True, "drop_path_rate": row.drop_path}
    assert (task.num_classes, data.batch_size) == (150, row.batch_size)
    assert (data.preprocessing.short_side, data.preprocessing.long_side) == (512, 2048)
    assert data.preprocessing.window is None
    assert row.reported in find_recipe(f"ade20k/{name}").read_text("utf-8")
    assert "not run here yet" in find_recipe(f"ade20k/{name}").read_text("utf-8")


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_can_be_run(name: str, ade20k: Path) -> None:
    narrow: dict[str, Any] = PVT if "pvt" in name else {"depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 1, 2, 2]}
    sizes = [f"--model.model_args.backbone_args={json.dumps(narrow)}"]
    sizes += ["--model.model_args.decoder_channels=128", "--data.short_side=64", "--data.crop_size=64", "--data.batch_size=2"]
    cli = parsed(name, ade20k, *sizes)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.callback_metrics["train/loss"].isfinite()
    assert 0 <= cli.trainer.callback_metrics["val/miou"] <= 1
