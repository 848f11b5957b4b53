from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from flatten_transformer.tasks.classification.mixing import Mixing
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.tasks.optimization import Optimization
from flatten_transformer.training.process import without_lightning_noise

MakeTask = Callable[..., ClassificationTask]
Fit = Callable[..., Trainer]
DEFAULT = {"model_args": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}}
FAST = Optimization(lr=1e-2, warmup_epochs=0)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def plain(make_task: MakeTask, fit: Fit) -> Tensor:
    """The weights that the default arguments come to."""
    task = make_task()
    with without_lightning_noise():
        fit(task, max_epochs=2)
    return weights(task.final_model)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "flatten_deit_small_patch16_224", "model_args": DEFAULT["model_args"] | {"attn_types": "S"}},
        {"model_args": DEFAULT["model_args"] | {"focusing_factor": 4}},
        {"optim": Optimization(lr=2e-3)},
        {"optim": Optimization(weight_decay=0.5)},
        {"optim": Optimization(warmup_epochs=1)},
        {"optim": Optimization(min_lr=1e-4)},
        {"mixing": Mixing(mixup_alpha=0.8)},
        {"mixing": Mixing(cutmix_alpha=0.8)},
        {"label_smoothing": 0.0},
        {"ema_decay": 0.5},
    ],
    ids=str,
)
def test_every_argument_changes_what_is_learned(change: dict[str, Any], plain: Tensor, make_task: MakeTask, fit: Fit) -> None:
    task = make_task(**change)
    fit(task, max_epochs=2)
    changed = weights(task.final_model)
    assert plain.shape != changed.shape or not torch.equal(plain, changed)


def test_two_equal_trainings_learn_the_same(make_task: MakeTask, fit: Fit) -> None:
    first, second = make_task(ema_decay=0.5), make_task(ema_decay=0.5)
    for task in (first, second):
        fit(task)
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:You requested to overfit")  # Lightning says that it will not shuffle: so we want it
@pytest.mark.parametrize("attn_types", ["L", "S"])
def test_a_handful_of_images_is_learned_by_heart(attn_types: str, make_task: MakeTask, fit: Fit) -> None:
    optim = Optimization(lr=3e-2, warmup_epochs=0)
    task = make_task(model_args=DEFAULT["model_args"] | {"attn_types": attn_types}, optim=optim, label_smoothing=0.0)
    trainer = fit(task, still=True, max_epochs=60, overfit_batches=1, limit_val_batches=0)
    assert trainer.callback_metrics["train/loss"] < 0.1


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_any_model_of_timm_can_be_trained(name: str, make_task: MakeTask, fit: Fit) -> None:
    task = make_task(name=name, model_args={} if name == "resnet10t" else DEFAULT["model_args"], ema_decay=0.9)
    trainer = fit(task, max_epochs=1, limit_train_batches=1)
    assert trainer.callback_metrics["val/loss"].isfinite()


def test_the_rate_of_each_step_is_that_of_the_schedule(make_task: MakeTask, fit: Fit) -> None:
    optim = Optimization(lr=1e-2, warmup_epochs=1, min_lr=1e-4)
    task = make_task(optim=optim)
    used: list[float] = []
    step = task.optimizer_step

    def spy(epoch: int, batch_idx: int, optimizer: Any, *rest: Any) -> None:
        used.append(optimizer.param_groups[0]["lr"])
        step(epoch, batch_idx, optimizer, *rest)

    task.optimizer_step = spy  # type: ignore[method-assign, assignment]  # a spy
    fit(task, max_epochs=3, limit_train_batches=4, accumulate_grad_batches=2)  # 2 steps an epoch, 6 in all
    schedule = optim.schedule(optim.optimizer(nn.Linear(1, 1), batch_size=1), total_steps=6, steps_per_epoch=2)
    assert used == pytest.approx([schedule._get_lr(number)[0] for number in range(6)])


@pytest.mark.parametrize("warmup", [True, False], ids=["with warm-up", "without"])
def test_the_average_is_that_of_the_weights_after_each_step(warmup: bool, make_task: MakeTask, fit: Fit) -> None:
    task = make_task(ema_decay=0.4, ema_warmup=warmup, optim=FAST)
    average = weights(task.model)
    step = task.optimizer_step

    def spy(*arguments: Any) -> None:
        nonlocal average
        step(*arguments)
        age = task.global_step  # that Lightning counts only afterwards
        decay = min(1 - (1 + age) ** (-2 / 3), 0.4) if warmup else 0.4 * (age > 0)  # timm begins with the first weights
        average = decay * average + (1 - decay) * weights(task.model)

    task.optimizer_step = spy  # type: ignore[method-assign, assignment]  # a spy
    fit(task, max_epochs=2, limit_train_batches=4, accumulate_grad_batches=2)
    torch.testing.assert_close(weights(task.final_model), average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights(task.final_model), weights(task.model))


def test_the_average_is_what_is_judged(make_task: MakeTask) -> None:
    task = make_task(ema_decay=0.9).eval()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        task.model.get_classifier().weight.zero_()  # type: ignore[operator]
        assert task.model(images).std() == 0
        assert task(images).std() > 0


def test_resuming_restores_the_average_and_goes_on_where_it_was(make_task: MakeTask, fit: Fit, tmp_path: Path) -> None:
    task = make_task(ema_decay=0.5, optim=FAST)
    fit(task, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_task(ema_decay=0.5, optim=FAST)
    at_start: list[Tensor] = []
    resumed.on_train_start = lambda: at_start.append(weights(resumed))  # type: ignore[method-assign]
    trainer = fit(resumed, ckpt_path=tmp_path / "half.ckpt", max_epochs=3)
    torch.testing.assert_close(at_start[0], weights(task), rtol=0, atol=0)
    assert trainer.global_step == 6
    assert not torch.equal(weights(resumed.final_model), weights(task.final_model))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"ema_decay": None}, "trained with a moving average, and this is a training without one"),
        ({"model_args": DEFAULT["model_args"] | {"depth": 2}}, "this checkpoint is not of ClassificationTask"),
    ],
    ids=["average", "depth"],
)
def test_a_checkpoint_of_another_model_is_refused(
    other: dict[str, Any], words: str, make_task: MakeTask, fit: Fit, tmp_path: Path
) -> None:
    fit(make_task(ema_decay=0.5), max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=words):
        fit(make_task(**({"ema_decay": 0.5} | other)), ckpt_path=tmp_path / "one.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(value: float, make_task: MakeTask, fit: Fit) -> None:
    task = make_task()
    with torch.no_grad():
        next(task.model.parameters()).fill_(value)
    with pytest.raises(FloatingPointError, match=r"nan in epoch 1, batch 1, step 1: lower .*images were image \d+, image"):
        fit(task, num_sanity_val_steps=0)


def test_a_training_without_an_end_is_refused(make_task: MakeTask, fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"must know where it ends: set trainer\.max_epochs"):
        fit(make_task(), max_epochs=-1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "flatten_diet_tiny_patch16_224"}, "timm knows no model .* did you mean flatten_deit_tiny_patch16_224"),
        ({"name": "qqqq"}, "timm knows no model 'qqqq': none of .* names is like it"),
        ({"model_args": {"dpth": 2}}, "model_args do not fit flatten_deit.*'dpth'"),
        ({"model_args": {"num_classes": 2}}, "model_args must not hold num_classes: the data say it"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie in 0 … 1, below 1, got 1.0"),
        ({"ema_decay": 1.0}, "ema_decay must lie in 0 … 1, below 1, or be null"),
    ],
)
def test_an_argument_out_of_range_is_refused(wrong: dict[str, Any], message: str, make_task: MakeTask) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**wrong)
