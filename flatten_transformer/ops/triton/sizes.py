"""Tiles, tokens per program and stretches of tokens, from the sizes of an attention."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton

from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.feature_maps import is_multiplied
from flatten_transformer.ops.triton.convolution import GROUP

_TARGET_PROGRAMS = 528  # four for each processor of a large GPU
_MIN_STRETCH, _MAX_STRETCH = 128, 4096  # tokens: the output of a stretch must stay small beside its input


class Blocks(NamedTuple):
    """Tokens of a head that a program holds at a time: the fastest on an H100."""

    few: int  # norms, keys forward
    some: int
    many: int  # context backward


class Sizes(NamedTuple):
    """Sizes of an attention, and the compile-time constants of its kernels, in four dictionaries."""

    batch: int
    heads: int
    queries: int
    keys: int
    tiles: dict[str, int]
    means: dict[str, int]
    norm: dict[str, int]
    convolution: dict[str, int]
    block: Blocks
    grid: tuple[int, int, int] | None  # number of prefix tokens, height, width; None without a convolution

    @property
    def samples(self) -> int:
        """Heads of all samples."""
        return self.batch * self.heads

    @property
    def narrow(self) -> bool:
        """Whether heads are narrow: other kernels then gain by sharing a processor than with wide ones."""
        return max(self.tiles["PAD_D"], self.tiles["PAD_E"]) <= 32

    @property
    def taps_at_once(self) -> int:
        """Groups of tokens so few that the sums of all taps of the convolution stay in registers."""
        return max(1, min(8, 256 // self.tiles["PAD_E"]))

    def grid_of(self, tokens: int) -> tuple[int, int, int]:
        """Return the grid; without a convolution all tokens are one row."""
        return self.grid or (0, 1, tokens)

    def groups(self, tokens: int) -> int:
        """Return the number of groups of neighbours in the grid."""
        prefix, height, width = self.grid_of(tokens)
        return -(-prefix // GROUP.value) + height * -(-width // GROUP.value)


def sizes_of(a: Arguments) -> Sizes:
    """Return the sizes of an attention."""
    batch, heads, queries, channels = a.query.shape
    keys, value_channels = a.value.shape[2:]
    # the matrix products of the kernels need at least 16 in each direction
    padded, value_padded = (max(16, triton.next_power_of_2(width)) for width in (channels, value_channels))
    kernel_height, kernel_width = (0, 0) if a.conv_weight is None else a.conv_weight.shape[2:]
    return Sizes(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        tiles={"D": channels, "E": value_channels, "PAD_D": padded, "PAD_E": value_padded},
        means={"PARTS": 1 if is_single(a) else 2},
        norm={"WHOLE": int(a.focusing_factor) if is_multiplied(a.focusing_factor) else 0, "JOINT": a.joint},
        convolution={"KERNEL_HEIGHT": kernel_height, "KERNEL_WIDTH": kernel_width},
        block=_blocks(max(padded, value_padded), is_single(a)),
        grid=None if a.conv_weight is None else (keys - math.prod(a.grid_size), *a.grid_size),  # type: ignore[arg-type]
    )


def is_single(a: Arguments) -> bool:
    """Return whether means are kept in float32: for tokens in it, or in several dtypes."""
    return len({a.query.dtype, a.key.dtype, a.value.dtype}) > 1 or a.value.dtype == torch.float32


def _blocks(widest: int, single: bool) -> Blocks:
    if single:  # products of float32 take their operands from registers
        return Blocks(*[32 if widest <= 32 else 16] * 3)
    return Blocks(few=min(64, 2048 // widest), some=min(64, 4096 // widest), many=min(128, 4096 // widest))


def split(tokens: int, block: int, programs: int) -> tuple[int, int]:
    """Return into how many stretches to cut the tokens of each of ``programs`` heads, and the length of one: whole blocks."""
    target = max(min(-(-_TARGET_PROGRAMS // programs), -(-tokens // _MIN_STRETCH)), -(-tokens // _MAX_STRETCH), 1)
    stretch = block * -(-max(tokens, 1) // (block * target))
    return max(1, -(-tokens // stretch)), stretch
