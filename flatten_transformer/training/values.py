"""Numbers of Lightning's options that are checked here, at once and by name, not where Lightning first stumbles over them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jsonargparse import Namespace

_MAX_SEED = 2**32 - 1  # of NumPy


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    wanted: str


def _is_share_or_count(value: Any) -> bool:
    return value >= 1 if isinstance(value, int) else 0 < value <= 1


def _are_devices(value: Any) -> bool:
    if isinstance(value, list):
        return value != [] and all(index >= 0 for index in value)
    return value == "auto" or re.fullmatch(r"-1|[1-9]\d*|\d+(,\d*)+", str(value).replace(" ", "")) is not None


_LIMIT = _Rule(lambda value: value == 0 or _is_share_or_count(value), "a number of batches, or a share of them up to 1.0")
_ENDING = _Rule(lambda value: value == -1 or value >= 1, "at least 1, or -1 for no such end")
_SOME = _Rule(_is_share_or_count, "a number of batches, at least 1, or a share of them up to 1.0")
_COUNT = _Rule(lambda value: value >= 1, "at least 1")
_RULES: Mapping[str, _Rule] = {
    "seed_everything": _Rule(lambda value: 0 <= value <= _MAX_SEED, f"0 to {_MAX_SEED}"),
    "checkpoint.save_top_k": _Rule(lambda value: value >= -1, "at least 0, or -1 for all"),
    "trainer.check_val_every_n_epoch": _COUNT,
    "trainer.devices": _Rule(_are_devices, "a number of devices, a list of them such as [0,2], or auto"),
    **{f"trainer.{name}": _LIMIT for name in ("limit_test_batches", "limit_val_batches", "overfit_batches")},
    "trainer.limit_train_batches": _SOME,
    "trainer.max_epochs": _ENDING,
    "trainer.max_steps": _ENDING,
    "trainer.num_nodes": _COUNT,
    "trainer.val_check_interval": _Rule(lambda value: isinstance(value, str) or _is_share_or_count(value), _SOME.wanted),
}


def check_numbers(config: Namespace) -> None:
    """Raise ValueError if a number of Lightning's options is out of range; null stays with Lightning.

    Args:
        config: The whole configuration of a training.

    Example:
        >>> check_numbers(Namespace(trainer=Namespace(max_epochs=0)))
        Traceback (most recent call last):
        ValueError: trainer.max_epochs must be at least 1, or -1 for no such end, got 0
    """
    for name, (holds, wanted) in _RULES.items():
        value = config.get(name)
        if isinstance(value, int | float | str | list) and not holds(value):
            raise ValueError(f"{name} must be {wanted}, got {value}")
