"""What a checkpoint says of its training is compared with the one that uses it."""

import logging
from typing import Any

import pytest
from torch import nn

from flatten_transformer.tasks.facts import compare, compare_averages, compare_classes, compare_groups, compare_length
from flatten_transformer.tasks.optimization import Optimization

HERE = {
    "task": "classify",
    "model.name": "flatten_deit_tiny_patch16_224",
    "class_names": ["cat", "dog"],
    "preprocessing": {"img_size": 32, "mean": [0.5]},
    "model.model_args": {"depth": 1},
    "model.optim": {"opt": "adamw", "lr": 0.001},
    "data.batch_size": 64,
    "trainer.max_epochs": 3,
    "trainer.max_steps": -1,
    "trainer.precision": "32-true",
}


@pytest.mark.parametrize(
    ("kept", "here", "message"),
    [
        (["cat", "dog"], ["ant", "bee"], r"other classes than the data \(cat, dog and not ant, bee\)"),
        (["cat", "dog"], ["dog", "cat"], r"the data's classes in another order \(cat, dog and not dog, cat\)"),
        (["cat"], ["cat", "dog"], r"other classes than the data \(cat and not cat, dog\)"),
        (["cat", "dog"], [], r"other classes than the data"),
        (["cat\x1b[2J"], ["cat"], r"\(cat\\x1b\[2J and not cat\)"),
        ([*map(str, range(99)), "a"], [*map(str, range(99)), "b"], r"\(… 97, 98, a and not … 97, 98, b\)"),
    ],
)
def test_other_classes_are_refused_and_named(kept: list[str], here: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_classes(kept, here)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "segment"}, "task is segment in the checkpoint and classify here"),
        ({"model.name": "deit_tiny"}, "model.name is deit_tiny in the checkpoint and flatten_deit"),
        ({"class_names": ["dog", "cat"]}, "in another order"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(change: dict[str, Any], message: str, resume: bool) -> None:
    with pytest.raises(ValueError, match=message):
        compare({**HERE, **change}, HERE, resume=resume)


def test_another_optimizer_is_refused_only_where_a_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    kept = {**HERE, "model.optim": {"opt": "sgd", "lr": 0.001}}
    with pytest.raises(ValueError, match="the checkpoint is of a training by sgd, and here it is adamw: resume with the same"):
        compare(kept, HERE, resume=True)
    with caplog.at_level(logging.INFO):
        compare(kept, HERE, resume=False)
    assert caplog.text == ""


def test_what_may_differ_is_said_in_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    kept = {
        **HERE,
        "preprocessing": {"img_size": 48, "mean": [0.5]},
        "model.model_args": {"depth": 1, "focusing_factor": 4},
        "model.optim": {"opt": "adamw", "lr": 0.01},
        "trainer.max_epochs": 5,
        "data.batch_size": 32,
    }
    with caplog.at_level(logging.INFO):
        compare(kept, HERE, resume=True)
    assert [record.message for record in caplog.records] == [
        "Note: not as in the training of the checkpoint: preprocessing.img_size was 48 and is 32 here, "
        "model.model_args.focusing_factor was 4 and is None here",
        "Note: the training goes on with other settings: data.batch_size was 32 and is 64 here",
        "Note: optimizer and schedule go on as the checkpoint has them: model.optim.lr was 0.01 and is 0.001 here, "
        "trainer.max_epochs was 5 and is 3 here",
    ]


def test_nothing_is_said_where_nothing_differs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        compare(HERE, HERE, resume=True)
    assert caplog.text == ""


def test_of_an_older_checkpoint_it_is_said_that_nothing_was_compared(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        compare(None, HERE, resume=False)
    assert [record.message for record in caplog.records] == [
        "The checkpoint does not say which classes it knows, as older ones: not compared with those of the data"
    ]


@pytest.mark.parametrize(("opt", "message"), [("sgd", "without dampening"), ("muon", "without .*momentum")])
def test_groups_of_another_optimizer_are_refused_without_its_name(opt: str, message: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    kept, here = (Optimization(opt=name).optimizer(model, 1).state_dict()["param_groups"] for name in ("adamw", opt))
    with pytest.raises(ValueError, match=message):
        compare_groups(kept, here)


def test_groups_of_other_sizes_are_refused() -> None:
    model = nn.Linear(2, 2)
    kept = Optimization().optimizer(model, 1).state_dict()["param_groups"]
    with pytest.raises(ValueError, match="groups of 1, 1 parameters, and here it is an optimizer with groups of 2 parameters"):
        compare_groups(kept, [{"params": [0, 1]}])


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "message"),
    [(4, -1, "has done 5 epochs, and trainer.max_epochs is 4: raise it"), (-1, 99, "has done 100 steps"), (5, 100, None)],
)
def test_a_training_that_went_further_is_refused(max_epochs: int, max_steps: int, message: str | None) -> None:
    kept = {"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 5}}}}, "global_step": 100}
    if message is None:
        compare_length(kept, max_epochs, max_steps)
    else:
        with pytest.raises(ValueError, match=message):
            compare_length(kept, max_epochs, max_steps)


def test_averages_must_be_on_both_sides_or_on_none() -> None:
    plain, averaged = {"model.head.bias": 0}, {"model.head.bias": 0, "ema.module.head.bias": 0}
    compare_averages(plain, plain)
    compare_averages(averaged, averaged)
    with pytest.raises(ValueError, match="trained with a moving average, and this is a training without one"):
        compare_averages(averaged, plain)
    with pytest.raises(ValueError, match="trained without a moving average, and this is a training with one"):
        compare_averages(plain, averaged)
