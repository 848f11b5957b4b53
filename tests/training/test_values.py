"""Numbers of Lightning's options are refused at once, by their names; those that it takes pass."""

from typing import Any

import pytest
from jsonargparse import Namespace

from flatten_transformer.training.values import check_numbers


def config(name: str, value: Any) -> Namespace:
    settings = Namespace()  # type: ignore[no-untyped-call]
    settings[name] = value
    return settings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed_everything", [-1, 2**32]),
        ("checkpoint.save_top_k", [-2]),
        ("trainer.check_val_every_n_epoch", [0, -1]),
        ("trainer.devices", ["abc", "", "0", 0, -2, "1.5", [], [-1]]),
        ("trainer.limit_train_batches", [0, 0.0, -1, 2.5, 1.1]),
        ("trainer.limit_val_batches", [-1, -0.5, 2.5]),
        ("trainer.max_epochs", [0, -2]),
        ("trainer.max_steps", [0, -2]),
        ("trainer.num_nodes", [0]),
        ("trainer.val_check_interval", [0, -1, 7.5]),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be .*, got ") as error:
            check_numbers(config(name, value))
        assert str(error.value).endswith(f"got {value}")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed_everything", [True, False, 0, 2**32 - 1]),
        ("checkpoint.save_top_k", [-1, 0, 3]),
        ("trainer.devices", ["auto", "-1", -1, 2, "2", "0,2", "0, 2", "1,", [0, 2], None]),
        ("trainer.limit_train_batches", [1, 1.0, 0.5, None]),
        ("trainer.limit_val_batches", [0, 0.0, 1, 1.0, None]),
        ("trainer.max_epochs", [-1, 1, None]),
        ("trainer.max_steps", [-1, 1]),
        ("trainer.val_check_interval", [1, 1.0, 100, 0.25, None, "00:12:00:00"]),
    ],
)
def test_what_lightning_takes_passes(name: str, values: list[Any]) -> None:
    for value in values:
        check_numbers(config(name, value))
