"""The recipes of the paper's COCO tables, against the settings of the baselines they follow."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from flatten_transformer.tasks.detection.task import DetectionTask
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.recipes import find_recipe, recipe_names
from tests.coco_files import write_coco


class Row(NamedTuple):
    """What a detector is trained with, on 8 GPUs with 2 images each."""

    epochs: int
    milestones: tuple[int, int]
    lr: float
    weight_decay: float
    drop_path: float
    sizes: list[int]
    reported: str | None  # by the paper: box AP, mask AP


MULTI_SCALE = list(range(480, 801, 32))
PAPER = {
    "mask_rcnn_flatten_swin_tiny_1x": Row(12, (8, 11), 1e-4, 0.05, 0.1, MULTI_SCALE, "box AP 44.2 and mask AP 40.2"),
    "mask_rcnn_flatten_swin_tiny_3x": Row(36, (27, 33), 1e-4, 0.05, 0.2, MULTI_SCALE, "box AP 46.5 and mask AP 42.1"),
    "mask_rcnn_flatten_pvt_tiny_1x": Row(12, (8, 11), 2e-4, 1e-4, 0.0, [800], "box AP 38.2 and mask AP 37.0"),
    "retinanet_flatten_pvt_tiny_1x": Row(12, (8, 11), 1e-4, 1e-4, 0.0, [800], None),
    "cascade_mask_rcnn_flatten_swin_tiny_3x": Row(36, (27, 33), 1e-4, 0.05, 0.2, MULTI_SCALE, "box AP 50.8 and mask AP 44.1"),
    "cascade_mask_rcnn_flatten_swin_small_3x": Row(36, (27, 33), 1e-4, 0.05, 0.2, MULTI_SCALE, "box AP 52.2 and mask AP 45.4"),
}
IMAGES = 117_266  # of train2017 with an object


def parsed(name: str, root: Path, *more: str) -> TrainingCLI:
    """Build everything a recipe names, without the authors' weights."""
    own = ["--data.root", str(write_coco(root)), "--data.num_workers", "0", "--model.model_args.pretrained", "false"]
    own += ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    return TrainingCLI("fit", ["--config", f"coco/{name}", *own, *more])


def test_every_recipe_is_in_the_table() -> None:
    assert {f"coco/{name}" for name in PAPER} == {name for name in recipe_names() if name.startswith("coco/")}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_trains_as_its_baseline_is_trained(name: str, tmp_path: Path) -> None:
    row = PAPER[name]
    with torch.device("meta"):
        cli = parsed(name, tmp_path)
    task, config = cli.model, cli.config
    assert isinstance(task, DetectionTask)
    assert (task.optim.lr, task.optim.weight_decay, task.optim.milestones) == (row.lr, row.weight_decay, row.milestones)
    assert round(task.optim.warmup_epochs * IMAGES / 16) == pytest.approx(500, abs=3)
    args: dict[str, Any] = task.model_args
    assert args["backbone_args"] == {"pretrained": True, "drop_path_rate": row.drop_path}
    assert (args["min_size"], args["max_size"]) == (800, 1333)
    assert args.get("feature_norm", False) == ("swin" in name)
    assert (config.data.batch_size, config.data.device_batch_size, config.data.empty_images) == (16, 2, False)
    assert (list(config.data.sizes), config.data.max_size, config.data.hflip) == (row.sizes, 1333, 0.5)
    assert (config.trainer.max_epochs, config.data.masks) == (row.epochs, "mask" in name)
    assert row.reported is None or row.reported in find_recipe(f"coco/{name}").read_text("utf-8")


@pytest.mark.parametrize("name", ["mask_rcnn_flatten_pvt_tiny_1x", "retinanet_flatten_pvt_tiny_1x"])
def test_a_recipe_can_be_run(name: str, tmp_path: Path) -> None:
    narrow = ["--model.model_args.fpn_channels", "16"]  # a mask head of 256 channels takes ten seconds
    small = ["--model.model_args.min_size", "64", "--model.model_args.max_size", "96"]
    cli = parsed(name, tmp_path, *small, "--data.sizes", "[64]", "--data.max_size", "96", *narrow)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.global_step == 1
