"""Which blocks are linear: read off the names of their tensors, for weights of another layout of blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from torch import nn

from flatten_transformer.layers import GridAttention
from flatten_transformer.models.cures import LayoutError
from flatten_transformer.models.options import write_attn_types

SHARED = ("qkv", "q", "kv", "proj", "sr", "sr_norm", "get_v")  # parts of a linear attention that softmax attention has too
_SOFTMAX = (*SHARED, "norm", "q_norm", "k_norm", "relative_position_bias_table")  # those of softmax attention
# stage, if the family has stages, and block; then the first part of an attention, two of them where stripes run both ways
_ATTENTION = re.compile(r"((?:(?:stages|layers)\.(\d+)\.)?blocks\.(\d+))\.(?:attn|attns\.\d+)\.(\w*)")

Block = tuple[int, int]  # stage and block


def check_blocks(model: nn.Module, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Raise LayoutError if what does not fit is that blocks of the weights are linear where the model's are softmax.

    Args:
        model: Target model.
        expected: Shapes of its tensors by name.
        actual: Those of the weights by the same names.

    Example:
        >>> import timm
        >>> types = {"mixed": "SL", "softmax": "S"}
        >>> models = {of: timm.create_model("flatten_deit_tiny_patch16_224", depth=2, attn_types=types[of]) for of in types}
        >>> shapes = {of: {name: x.shape for name, x in model.state_dict().items()} for of, model in models.items()}
        >>> try:
        ...     check_blocks(models["softmax"], expected=shapes["softmax"], actual=shapes["mixed"])
        ... except LayoutError as error:
        ...     error.arguments
        {'attn_types': 'SL'}
    """
    own = {_block(f"{name}.") for name, module in model.named_modules() if isinstance(module, GridAttention)}
    letters = _letters(actual)
    linear = [block for block in letters if letters[block] == "L" and block not in own]
    misfits = {name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)}
    if not linear or not {_block(name) for name in misfits} <= set(linear):
        return
    stages = tuple("".join(letters[block] for block in blocks) for _, blocks in groupby(sorted(letters), lambda block: block[0]))
    first = next(found[1] for name in actual if (found := _ATTENTION.match(name)) and _block(name) == linear[0])
    count, more = ("1 block is", "") if len(linear) == 1 else (f"{len(linear)} blocks are", ", …")
    raise LayoutError(
        f"{count} linear in the weights and softmax in this model ({first}{more})", {"attn_types": write_attn_types(stages)}
    )


def _letters(names: Iterable[str]) -> dict[Block, str]:
    """Return the letter of each block: linear if its attention has what only linear attention has."""
    letters: dict[Block, str] = {}
    for name in names:
        block, found = _block(name), _ATTENTION.match(name)
        if block and found and letters.get(block) != "L":
            letters[block] = "S" if found[4] in _SOFTMAX else "L"
    return letters


def _block(name: str) -> Block | None:
    """Return the block whose attention this tensor is of, if it is of one."""
    found = _ATTENTION.match(name)
    return (int(found[2] or 0), int(found[3])) if found else None
