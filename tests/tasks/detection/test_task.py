from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]  # ships no annotations
from PIL import Image

from flatten_transformer.tasks.detection.predict import detect
from flatten_transformer.tasks.detection.task import DetectionTask
from flatten_transformer.tasks.model_file import load_model
from flatten_transformer.training.cli import TrainingCLI, train
from tests.coco_files import write_coco
from tests.tasks.detection.conftest import SMALL


@pytest.fixture(autouse=True)
def _in_a_folder_with_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path / "coco")
    monkeypatch.chdir(tmp_path)


def arguments(name: str = "mask_rcnn", *more: str, **changes: Any) -> list[str]:
    args = {**SMALL, "anchor_sizes": list(SMALL["anchor_sizes"]), **({} if name == "retinanet" else {"box_dim": 16}), **changes}
    args["backbone_args"] = {key: list(each) if isinstance(each, tuple) else each for key, each in args["backbone_args"].items()}
    recipe = {
        "task": "detect",
        "seed_everything": 0,
        "model": {"name": name, "model_args": args, "optim": {"lr": 1e-3, "milestones": [1], "warmup_epochs": 0.5}},
        "data": {"root": "coco", "sizes": [48, 64], "max_size": 96, "batch_size": 2},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    return ["--config", "small.yaml", *more]


def test_a_fit_logs_every_loss_and_cocos_numbers_and_keeps_a_model_that_detects() -> None:
    cli = train("fit", arguments("mask_rcnn", "--model.ema_decay", "0.9"))
    metrics = cli.trainer.callback_metrics
    losses = {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    assert {f"train/{name}_loss" for name in losses} <= metrics.keys()
    parts = sum(float(metrics[f"train/{name}_loss"]) for name in losses)
    assert float(metrics["train/loss"]) == pytest.approx(parts, rel=1e-5)
    assert {f"val/{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75", "ap_small")} <= metrics.keys()
    run = Path("runs/small/version_0")
    assert {"best-epoch=0.ckpt", "last.ckpt", "model.safetensors"} <= {path.name for path in (run / "checkpoints").iterdir()}
    with Image.open(run / "detections.png") as picture:
        assert picture.size[0] == 2 * 5 * 80 + 3 * 8  # the widest image, five times enlarged
    rows = (run / "per_class.csv").read_text().splitlines()
    assert rows[0] == "class,box_ap,box_ap50,mask_ap,mask_ap50,support"
    assert [row.rpartition(",")[2] for row in rows[1:]] == ["2", "1", "1"]  # the crowd is no object to find
    model, info = load_model(run / "checkpoints" / "model.safetensors")
    assert (info.task, list(info.class_names)) == ("detect", ["car", "cat", "toothbrush"])
    assert info.category_ids == [3, 17, 90]
    for name, value in cli.model.ema.module.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    found = detect(model, info, [Path("coco/val2017/2.png")], threshold=0.0)[0]
    assert all(each.mask is not None and each.mask.shape == (60, 80) for each in found)


def test_what_is_judged_is_the_moving_average() -> None:
    cli = TrainingCLI("validate", arguments("faster_rcnn", "--model.ema_decay", "0.9"))
    task = cli.model.eval()
    assert isinstance(task, DetectionTask)
    images = [torch.rand(3, 64, 80)]
    with torch.no_grad():
        before = task(images)[0]["scores"]
        for parameter in task.model.parameters():
            parameter.zero_()
        assert torch.equal(task(images)[0]["scores"], before)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_detector_of_boxes_is_judged_by_boxes(stage: Any) -> None:
    cli = train(stage, arguments("retinanet", "--data.masks", "false"))
    prefix = "val" if stage == "validate" else "test"
    names = {name for name in cli.trainer.callback_metrics if name.startswith(prefix)}
    assert f"{prefix}/box_ap" in names
    assert not [name for name in names if "mask" in name]


def test_a_detector_of_masks_refuses_data_without() -> None:
    with pytest.raises(ValueError, match=r"learns masks, but the targets hold none: set data\.masks to true"):
        train("fit", arguments("mask_rcnn", "--data.masks", "false"))


def test_a_loss_that_is_not_finite_names_the_images() -> None:
    cli = TrainingCLI("fit", arguments("retinanet", "--trainer.fast_dev_run", "true"))
    with torch.no_grad():
        next(iter(cli.model.parameters())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss became nan .* the images were coco/train2017/\d\.png, coco"):
        cli.trainer.fit(cli.model, cli.datamodule)


def test_an_image_that_cannot_be_read_is_left_out_where_it_is_to_be_skipped(caplog: pytest.LogCaptureFixture) -> None:
    Path("coco/val2017/1.png").write_bytes(b"no image")
    cli = train("validate", arguments("retinanet", "--data.on_bad_image", "skip"))
    assert cli.datamodule.skipped("val") == ["coco/val2017/1.png"]
    assert "val images skipped because they cannot be read: 1" in caplog.text


def test_activations_can_be_recomputed() -> None:
    train("fit", arguments("retinanet", "--grad_checkpointing", "true", "--trainer.fast_dev_run", "true"))
