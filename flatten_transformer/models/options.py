"""Checks of options that several families share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def expand_attn_types(attn_types: str, depths: Sequence[int]) -> tuple[str, ...]:
    """Return the letters of each stage, one a block.

    Args:
        attn_types: Letters ``"L"`` (linear) and ``"S"`` (softmax): one for all blocks, one a stage, or one a block. Hyphens may
            set stages apart; each then has one letter for all its blocks, or one a block.
        depths: Blocks a stage.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> expand_attn_types("LLSS", (2, 2, 6, 2))
        ('LL', 'LL', 'SSSSSS', 'SS')
        >>> expand_attn_types("LLLSLSLSLSSS", (2, 2, 6, 2)) == expand_attn_types("L-LS-LSLSLS-S", (2, 2, 6, 2))
        True
    """
    stages = tuple(
        group * depth if len(group) == 1 else group for group, depth in zip(_groups(attn_types, depths), depths, strict=False)
    )
    if [len(letters) for letters in stages] != list(depths) or set("".join(stages)) - set("LS"):
        raise ValueError(_refusal(attn_types, depths))
    return stages


def _groups(attn_types: str, depths: Sequence[int]) -> Sequence[str]:
    """Return the letters of each stage, where one may stand for all; none if they are of another number."""
    if not isinstance(attn_types, str):
        return ()
    if "-" in attn_types:
        groups = attn_types.split("-")
        return groups if len(groups) == len(depths) else ()
    if len(attn_types) == 1:
        return attn_types * len(depths)
    if len(attn_types) == len(depths):  # if it is the number of blocks too, each stage has one
        return attn_types
    if len(attn_types) == sum(depths):
        return [attn_types[end - depth : end] for end, depth in zip(accumulate(depths), depths, strict=True)]
    return ()


def _refusal(attn_types: object, depths: Sequence[int]) -> str:
    blocks, stages = f"each of {sum(depths)} blocks", ""
    if len(depths) > 1:
        stages = f", one for each of {len(depths)} stages"
        blocks += f" ({'-'.join(map(str, depths))}, where hyphens may set the stages apart)"
    got = repr(attn_types)
    if isinstance(attn_types, str):
        got += f" ({'-'.join(str(len(letters)) for letters in attn_types.split('-'))} letters)"
    return f'attn_types must be letters "L" (linear) or "S" (softmax), one for all{stages} or one for {blocks}, got {got}'


def write_attn_types(stages: Sequence[str]) -> str:
    """Return the shortest ``attn_types`` of these letters, one a block: the inverse of :func:`expand_attn_types`.

    Example:
        >>> write_attn_types(("LL", "LL", "SSSSSS", "SS")), write_attn_types(("LL", "LS", "SSSSSS", "SS"))
        ('LLSS', 'L-LS-S-S')
    """
    groups = [letters[0] if len(set(letters)) == 1 else letters for letters in stages]
    if len(set(groups)) == 1 and len(groups[0]) == 1:
        return groups[0]
    return ("" if all(len(letters) == 1 for letters in groups) else "-").join(groups)


def check_attn_drop(attn_drop_rate: float, attn_types: str) -> None:
    """Raise ValueError for dropout on attention weights where no block has any."""
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
