"""The recipes of the paper against its table, which stands here once, as it was published."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from PIL import Image
from timm.layers import DropPath
from torch import nn

from flatten_transformer.data.module import Share, share_batch
from flatten_transformer.tasks import task
from flatten_transformer.tasks.classification import task as classification
from flatten_transformer.tasks.classification.data import ImageData
from flatten_transformer.tasks.classification.mixing import Mixing
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.recipes import recipe_names


class Row(NamedTuple):
    """What the paper trained a model with, on 8 GPUs; rates are those of 512 images a step."""

    gpu_batch: int
    warmup: int
    cooldown: int
    min_lr: float
    clip: float | None
    drop_path: float
    epochs: int = 300
    lr: float = 5e-4
    warmup_lr: float = 1e-6
    weight_decay: float = 0.05
    ema: float | None = None
    img_size: int = 224
    begin: str | None = None


PAPER = {
    "flatten_swin_tiny_patch4_224": Row(128, 20, 0, 5e-6, 5.0, 0.2, warmup_lr=5e-7),
    "flatten_swin_small_patch4_224": Row(128, 20, 0, 5e-6, 5.0, 0.3, warmup_lr=5e-7),
    "flatten_swin_base_patch4_224": Row(64, 20, 0, 5e-6, 5.0, 0.5, warmup_lr=5e-7),
    "flatten_swin_base_patch4_384": Row(
        32, 5, 0, 2e-7, 5.0, 0.5, 30, 2e-5, 2e-8, 1e-8, img_size=384, begin="flatten_swin_base_patch4_224"
    ),
    "flatten_pvt_tiny": Row(128, 5, 10, 1e-5, None, 0.1),
    "flatten_pvt_small": Row(64, 5, 10, 1e-5, None, 0.1),
    "flatten_pvt_medium": Row(64, 5, 10, 1e-5, 1.0, 0.3),
    "flatten_pvt_large": Row(32, 5, 10, 1e-5, 1.0, 0.3),
    "flatten_pvt_v2_b0": Row(128, 5, 10, 1e-5, None, 0.1),
    "flatten_pvt_v2_b1": Row(128, 5, 10, 1e-5, None, 0.1),
    "flatten_pvt_v2_b2": Row(128, 5, 10, 1e-5, None, 0.1),
    "flatten_pvt_v2_b3": Row(128, 5, 10, 1e-5, 1.0, 0.3),
    "flatten_pvt_v2_b4": Row(64, 5, 10, 1e-5, 1.0, 0.3),
    "flatten_cswin_tiny_224": Row(256, 20, 10, 1e-5, None, 0.2, ema=0.99984),
    "flatten_cswin_small_224": Row(128, 20, 10, 1e-5, None, 0.4, ema=0.99984),
    "flatten_cswin_base_224": Row(64, 20, 10, 1e-5, None, 0.5, weight_decay=0.1, ema=0.99982),
    "flatten_cswin_base_384": Row(
        32, 0, 10, 5e-7, None, 0.7, 20, 5e-6, 5e-6, 1e-8, ema=0.99982, img_size=384, begin="flatten_cswin_base_224"
    ),
    # not published: the general recipe with the numbers of PVT-T, which are DeiT's
    "flatten_deit_tiny_patch16_224": Row(128, 5, 10, 1e-5, None, 0.1),
    "flatten_deit_small_patch16_224": Row(128, 5, 10, 1e-5, None, 0.1),
    "flatten_deit_base_patch16_224": Row(128, 5, 10, 1e-5, None, 0.1),
}
AUGMENTATION = {
    "scale": (0.08, 1.0),
    "ratio": pytest.approx((3 / 4, 4 / 3)),
    "hflip": 0.5,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "re_prob": 0.25,
    "re_mode": "pixel",
}


def build_without_memory(name: str, model_args: Mapping[str, Any], num_classes: int, in_chans: int) -> nn.Module:
    """Build a model whose weights are shapes alone: twenty of them in seconds, and none is read from a file."""
    args = {name: value for name, value in model_args.items() if name != "checkpoint_path"}
    with torch.device("meta"):
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **args)


class Average(nn.Module):
    """Stands in for timm's moving average, which cannot be made of shapes alone."""

    def __init__(self, model: nn.Module, decay: float, use_warmup: bool) -> None:
        super().__init__()
        self.settings = (decay, use_warmup)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (500, 375), "green").save(root / split / name / "1.JPEG")
    return root


class Built(NamedTuple):
    """A row of the table and what its recipe makes."""

    row: Row
    name: str
    cli: TrainingCLI
    task: ClassificationTask
    data: ImageData


@pytest.fixture(scope="module", params=PAPER)
def built(request: pytest.FixtureRequest, imagenet: Path) -> Built:
    with pytest.MonkeyPatch.context() as patch, without_lightning_noise():
        patch.setattr(classification, "build_model", build_without_memory)
        patch.setattr(task, "ModelEmaV3", Average)
        here = ["--data.root", str(imagenet), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
        cli = TrainingCLI("fit", ["--config", f"imagenet1k/{request.param}", *here, "--trainer.fast_dev_run", "true"])
    return Built(PAPER[request.param], request.param, cli, cli.model, cli.datamodule)


def test_every_published_model_has_its_recipe_and_no_other_has() -> None:
    recipes = {name.removeprefix("imagenet1k/") for name in recipe_names() if name.startswith("imagenet1k/")}
    assert recipes == set(PAPER)
    assert set(timm.list_models("flatten_*")) - recipes == {"flatten_pvt_v2_b5"}  # which the paper did not train


def test_the_recipe_is_of_the_model_it_is_named_after(built: Built) -> None:
    assert built.task.name == built.name
    begin = built.task.model_args.get("checkpoint_path")
    assert (begin and Path(begin).parts[:3]) == (built.row.begin and ("runs", "imagenet1k", built.row.begin))
    assert built.row.begin is None or built.row.begin in PAPER


def test_the_rate_follows_the_table(built: Built) -> None:
    row, steps = built.row, 7  # an epoch; any number does
    assert built.cli.config.trainer.max_epochs == row.epochs + row.cooldown
    optimizer = built.task.optim.optimizer(built.task.model, built.data.batch_size)
    schedule = built.task.optim.schedule(optimizer, (row.epochs + row.cooldown) * steps, steps)
    scale = 8 * row.gpu_batch / 512
    lr, warmup_lr, min_lr = row.lr * scale, row.warmup_lr * scale, row.min_lr * scale

    def rate(epoch: float) -> float:
        schedule.step_update(round(epoch * steps))
        rates = {group["lr"] for group in optimizer.param_groups}
        assert len(rates) == 1
        return float(rates.pop())

    peak = min_lr + (lr - min_lr) * (1 + math.cos(math.pi * row.warmup / row.epochs)) / 2
    assert rate(0) == pytest.approx(warmup_lr if row.warmup else lr)
    if row.warmup:
        assert rate(row.warmup - 1 / steps) == pytest.approx(lr - (lr - warmup_lr) / (row.warmup * steps))
    assert rate(row.warmup) == pytest.approx(peak)
    assert rate(row.epochs / 2) == pytest.approx((lr + min_lr) / 2)
    assert rate(row.epochs - 1 / steps) > min_lr
    assert [rate(epoch) for epoch in range(row.epochs, row.epochs + row.cooldown + 1)] == [min_lr] * (row.cooldown + 1)


@pytest.mark.parametrize("built", ["flatten_swin_tiny_patch4_224"], indirect=True)
def test_the_rate_of_swin_is_as_everyone_knows_it(built: Built) -> None:
    optimizer = built.task.optim.optimizer(built.task.model, built.data.batch_size)
    assert optimizer.defaults["lr"] == pytest.approx(1e-3)
    schedule = built.task.optim.schedule(optimizer, 3000, 10)
    assert (schedule.warmup_lr_init, schedule.lr_min) == (1e-6, 1e-5)


def test_weights_decay_by_the_table_and_biases_and_vectors_do_not(built: Built) -> None:
    optimizer = built.task.optim.optimizer(built.task.model, built.data.batch_size)
    assert all((group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8) for group in optimizer.param_groups)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in built.task.model.named_parameters() if p.requires_grad}
    assert len(decay) == len(trained)
    model: Any = built.task.model
    exempt = model.no_weight_decay()
    for name, parameter in trained.items():
        spared = parameter.ndim == 1 or name.endswith(".bias") or name in exempt
        assert decay[id(parameter)] == (0 if spared else built.row.weight_decay), name


def test_eight_gpus_take_the_batch_of_the_table_and_fewer_take_turns(built: Built) -> None:
    batch, device = built.data.batch_size, built.data.device_batch_size
    assert share_batch(batch, 8, device) == Share(images=built.row.gpu_batch, micro_batches=1)
    assert share_batch(batch, 2, device) == Share(images=built.row.gpu_batch, micro_batches=4)


def test_clipping_drop_path_and_average_are_those_of_the_table(built: Built) -> None:
    assert built.cli.trainer.gradient_clip_val == built.row.clip
    rates = [module.drop_prob for module in built.task.model.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(built.row.drop_path)
    assert rates == sorted(rates)  # deeper blocks are dropped more often
    average: Any = built.task.ema
    assert (average and average.settings) == (built.row.ema and (built.row.ema, False))


def test_images_are_augmented_and_mixed_as_the_table_says(built: Built) -> None:
    assert built.cli.config.data.augmentation.as_dict() == AUGMENTATION
    assert built.task.mixing == Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5)
    assert built.task.label_smoothing == 0.1


def test_the_model_sees_images_as_large_as_it_was_made_for(built: Built) -> None:
    size = built.row.img_size
    built.data.setup("fit")
    for loader in (built.data.train_dataloader(), built.data.val_dataloader()):
        image, _, _ = loader.dataset[0]
        assert image.shape == (3, size, size)
    model: Any = built.task.model
    assert model.pretrained_cfg["input_size"] == (3, size, size)
    assert model.pretrained_cfg["crop_pct"] == built.data.preprocessing.crop_pct
