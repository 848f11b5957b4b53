"""Checks of options that several families share."""

from __future__ import annotations

from collections.abc import Sequence


def expand_attn_types(attn_types: str, count: int) -> str:
    """Return one letter a block or stage, or raise ValueError.

    Example:
        >>> expand_attn_types("L", 3)
        'LLL'
    """
    letters = attn_types * count if len(attn_types) == 1 else attn_types
    if len(letters) != count or set(letters) - set("LS"):
        raise ValueError(
            f'attn_types must be "L" (linear), "S" (softmax) or one such letter for each of {count}, got {attn_types!r}'
        )
    return letters


def check_attn_drop(attn_drop_rate: float, attn_types: str) -> None:
    """Raise ValueError for dropout on attention weights where no stage has any."""
    if attn_drop_rate and "S" not in attn_types:
        raise ValueError(
            f"attn_drop_rate acts on the weights of softmax attention, which attn_types={attn_types!r} has nowhere: "
            f"leave it out or use proj_drop_rate, got {attn_drop_rate!r}"
        )


def per_stage(values: int | Sequence[int], count: int, requirement: str) -> tuple[int, ...]:
    """Return one positive whole number a stage, or raise ValueError.

    Args:
        values: One for all stages, or one a stage.
        count: Stages.
        requirement: Beginning of the message, as in the example.

    Example:
        >>> per_stage(2, 4, "sr_ratios must be positive")
        (2, 2, 2, 2)
    """
    chosen = (values,) * count if isinstance(values, int) else tuple(values)
    if len(chosen) != count or not all(isinstance(value, int) and value >= 1 for value in chosen):
        raise ValueError(f"{requirement}, got {values!r}")
    return chosen
