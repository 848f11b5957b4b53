import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

import flatten_transformer  # noqa: F401  # registers the models
from flatten_transformer.tasks.optimization import Optimization

NAMES = ("flatten_deit_tiny_patch16_224", "vit_tiny_patch16_224", "resnet10t")


@pytest.mark.parametrize("name", NAMES)
def test_the_groups_follow_timms_rule(name: str) -> None:
    model = timm.create_model(name)
    groups = Optimization(weight_decay=0.3).optimizer(model).param_groups
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    expected = param_groups_weight_decay(model, 0.3, no_weight_decay_list=exempt)
    for group, wanted in zip(groups, expected, strict=True):
        assert group["weight_decay"] == wanted["weight_decay"]
        assert [id(p) for p in group["params"]] == [id(p) for p in wanted["params"]]


@pytest.mark.parametrize("name", NAMES)
def test_biases_vectors_and_what_the_model_exempts_do_not_decay(name: str) -> None:
    model = timm.create_model(name)
    groups = Optimization(weight_decay=0.3).optimizer(model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    for parameter_name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or parameter_name.endswith(".bias") or parameter_name in exempt
        assert decay[id(parameter)] == (0 if spared else 0.3), parameter_name


def test_the_rate_climbs_from_the_lowest_and_falls_back_to_it() -> None:
    recipe = Optimization(lr=0.1, warmup_epochs=2.5, min_lr=0.01)
    optimizer = recipe.optimizer(torch.nn.Linear(2, 2))
    schedule = recipe.schedule(optimizer, total_steps=100, steps_per_epoch=4)
    rates = [optimizer.param_groups[0]["lr"]]
    for step in range(1, 101):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == 0.01
    assert rates[5] == pytest.approx(0.055)  # half way up
    assert rates[10] == max(rates) == pytest.approx(0.1, rel=0.03)  # 10 = 2.5 · 4; the cosine starts at step 0
    assert rates[50] == pytest.approx(0.055)
    assert rates[100] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0, "min_lr": 0.0}, "lr must be positive and at least min_lr, got lr 0.0"),
        ({"lr": float("inf")}, "lr must be positive"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "lr must be positive and at least min_lr, got lr 0.001 and min_lr 0.01"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, got -1"),
    ],
)
def test_a_number_out_of_range_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimization(**wrong)
