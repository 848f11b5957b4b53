from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay

import flatten_transformer  # noqa: F401  # registers the models
from flatten_transformer.tasks.optimization import Optimization

NAMES = ("flatten_deit_tiny_patch16_224", "vit_tiny_patch16_224", "resnet10t")


@pytest.mark.parametrize("name", NAMES)
def test_the_groups_follow_timms_rule(name: str) -> None:
    model = timm.create_model(name)
    groups = Optimization(weight_decay=0.3).optimizer(model, batch_size=1).param_groups
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    expected = param_groups_weight_decay(model, 0.3, no_weight_decay_list=exempt)
    for group, wanted in zip(groups, expected, strict=True):
        assert group["weight_decay"] == wanted["weight_decay"]
        assert [id(p) for p in group["params"]] == [id(p) for p in wanted["params"]]


@pytest.mark.parametrize("name", NAMES)
def test_biases_vectors_and_what_the_model_exempts_do_not_decay(name: str) -> None:
    model = timm.create_model(name)
    groups = Optimization(weight_decay=0.3).optimizer(model, batch_size=1).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    for parameter_name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or parameter_name.endswith(".bias") or parameter_name in exempt
        assert decay[id(parameter)] == (0 if spared else 0.3), parameter_name


def rates(recipe: Optimization, total_steps: int, steps_per_epoch: int, batch_size: int = 1) -> list[float]:
    """The rate of each step, and that after the last."""
    optimizer = recipe.optimizer(torch.nn.Linear(2, 2), batch_size)
    schedule = recipe.schedule(optimizer, total_steps, steps_per_epoch)
    found = [optimizer.param_groups[0]["lr"]]
    for step in range(1, total_steps + 1):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_climbs_from_the_lowest_and_falls_back_to_it() -> None:
    found = rates(Optimization(lr=0.1, warmup_epochs=2.5, min_lr=0.01), total_steps=100, steps_per_epoch=4)
    assert found[0] == 0.01
    assert found[5] == pytest.approx(0.055)  # half way up
    assert found[10] == max(found) == pytest.approx(0.1, rel=0.03)  # 10 = 2.5 · 4; the cosine starts at step 0
    assert found[50] == pytest.approx(0.055)
    assert found[100] == pytest.approx(0.01)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_the_warm_up_can_begin_elsewhere() -> None:
    found = rates(Optimization(lr=0.1, warmup_epochs=5, warmup_lr=0.001, min_lr=0.01), total_steps=20, steps_per_epoch=1)
    assert found[0] == 0.001
    assert found[20] == pytest.approx(0.01)


def test_the_cool_down_stays_at_the_lowest_rate_and_counts_among_the_epochs() -> None:
    recipe = Optimization(lr=0.1, warmup_epochs=0, min_lr=0.01)
    cosine = rates(recipe, total_steps=20, steps_per_epoch=2)
    cooled = rates(replace(recipe, cooldown_epochs=1.5), total_steps=23, steps_per_epoch=2)
    assert cooled[:21] == cosine
    assert cooled[20:] == [0.01] * 4


def test_all_three_rates_grow_with_the_batch_from_the_one_they_are_meant_for() -> None:
    recipe = Optimization(lr=0.1, warmup_epochs=5, warmup_lr=0.001, min_lr=0.01, lr_base_size=512)
    small, large = (rates(recipe, total_steps=30, steps_per_epoch=1, batch_size=size) for size in (512, 2048))
    assert large == pytest.approx([4 * rate for rate in small])
    assert small == rates(replace(recipe, lr_base_size=None), total_steps=30, steps_per_epoch=1, batch_size=2048)


def test_a_cool_down_longer_than_the_training_is_refused_but_in_a_dry_run() -> None:
    recipe = Optimization(cooldown_epochs=10)
    with pytest.raises(
        ValueError, match=r"a cool-down of 10 epochs leaves nothing of a training of 5: raise trainer\.max_epochs"
    ):
        rates(recipe, total_steps=10, steps_per_epoch=2)
    assert len(rates(recipe, total_steps=1, steps_per_epoch=1)) == 2


def test_adamw_gets_its_own_numbers() -> None:
    group = Optimization(betas=(0.8, 0.95), eps=1e-6).optimizer(torch.nn.Linear(1, 1), batch_size=1).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)


def test_any_optimizer_of_timm_serves_with_its_own_numbers() -> None:
    layer = torch.nn.Linear(2, 2)
    muon = Optimization(opt="muon", lr=0.02).optimizer(layer, batch_size=1)
    assert (type(muon).__name__, muon.defaults["lr"], muon.defaults["betas"]) == ("Muon", 0.02, (0.9, 0.95))
    with pytest.raises(ValueError, match=r"sgd has no betas: leave it out of model\.optim"):
        Optimization(opt="sgd", betas=(0.8, 0.9)).optimizer(layer, batch_size=1)


LAYERED = (
    "flatten_deit_tiny_patch16_224",
    "flatten_pvt_tiny",
    "flatten_pvt_v2_b0",
    "flatten_swin_tiny_patch4_224",
    "flatten_cswin_tiny_224",
)


@pytest.mark.parametrize("name", LAYERED)
def test_each_layer_of_each_family_learns_slower_than_the_one_above(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    recipe = Optimization(lr=0.1, warmup_epochs=0, min_lr=0.0, layer_decay=0.5)
    optimizer = recipe.optimizer(model, batch_size=1)
    recipe.schedule(optimizer, total_steps=10, steps_per_epoch=1)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    top = max(layers.values())
    assert top >= 5  # a stem, four stages or more blocks, and a head
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter_name, parameter in trained.items():
        assert rate[id(parameter)] == pytest.approx(0.1 * 0.5 ** (top - layers[parameter_name])), parameter_name
    assert rate[id(model.get_classifier().weight)] == 0.1


def test_the_rate_falls_to_a_tenth_at_each_milestone() -> None:
    recipe = Optimization(lr=1.0, warmup_epochs=0.5, min_lr=0.1, milestones=(8, 11))
    optimizer = recipe.optimizer(torch.nn.Linear(2, 2), batch_size=1)
    schedule = recipe.schedule(optimizer, total_steps=120, steps_per_epoch=10)
    rates = [optimizer.param_groups[0]["lr"]]
    for step in range(1, 121):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:6] == pytest.approx([0.1, 0.28, 0.46, 0.64, 0.82, 1.0])
    assert rates[5:80] == [1.0] * 75
    assert rates[80:110] == pytest.approx([0.1] * 30)
    assert rates[110:] == pytest.approx([0.01] * 11)


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_the_rate_can_fall_by_a_polynomial(power: float) -> None:
    recipe = Optimization(lr=0.1, warmup_epochs=1.5, min_lr=0.01, power=power)
    optimizer = recipe.optimizer(torch.nn.Linear(2, 2), batch_size=1)
    schedule = recipe.schedule(optimizer, total_steps=100, steps_per_epoch=4)
    rates = []
    for step in range(101):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == 0.01
    assert rates[3] == pytest.approx(0.055)  # half way up
    for step in (6, 50, 99, 100):
        assert rates[step] == pytest.approx(0.01 + 0.09 * (1 - step / 100) ** power)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0, "min_lr": 0.0}, "lr must be positive and at least min_lr, got lr 0.0"),
        ({"lr": float("inf")}, "lr must be positive"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "lr must be positive and at least min_lr, got lr 0.001 and min_lr 0.01"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"power": 0.0}, r"power must be positive and without milestones, got 0\.0 and None"),
        ({"power": 1.0, "milestones": (1.0,)}, r"power must be positive and without milestones, got 1\.0 and \(1\.0,\)"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, got -1"),
        ({"cooldown_epochs": -1}, "cooldown_epochs must be at least 0, got -1"),
        ({"warmup_lr": 1.0}, r"warmup_lr must lie in 0 … lr, got warmup_lr 1.0 and lr 0.001"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in 0 … 1, below 1, got \[0.9, 1.0\]"),
        ({"opt": "adamm"}, r"opt must be an optimizer of timm, got 'adamm': did you mean"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"lr_base_size": 0}, "lr_base_size must be at least 1, or null for rates as they are, got 0"),
        ({"layer_decay": 0.0}, "layer_decay must lie in 0 … 1, above 0, or be null for one rate, got 0.0"),
        ({"milestones": (11, 8)}, r"milestones must be epochs above 0 in rising order, got \[11, 8\]"),
        ({"milestones": (0, 8)}, "milestones must be epochs above 0"),
        ({"milestones": (8,), "cooldown_epochs": 1}, "a cool-down follows a cosine, not milestones"),
    ],
)
def test_a_number_out_of_range_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimization(**wrong)
