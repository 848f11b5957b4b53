"""Options that several families share, checked in one place."""

from __future__ import annotations


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
    """Raise ValueError where dropout on attention weights is asked for and no stage has such weights."""
    if attn_drop_rate and "S" not in attn_types:
        raise ValueError(
            f"attn_drop_rate acts on the weights of softmax attention, which attn_types={attn_types!r} has nowhere: "
            f"leave it out or use proj_drop_rate, got {attn_drop_rate!r}"
        )
