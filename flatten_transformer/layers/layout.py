"""Where the tokens of an attention lie, and the parts that its output is made of."""

# B batch, N queries, M keys, C channels = H heads × D channels per head, G groups of value channels.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flatten_transformer.ops.checks import is_grid
from flatten_transformer.ops.peers.reference import apply_matrix


class Layout(NamedTuple):
    """Where the tokens of one call lie, and which of them count."""

    grid_size: Sequence[int]  # of the queries
    context_grid_size: Sequence[int]  # of keys and values
    attn_mask: Tensor | None = None  # [B, 1, 1, M], boolean, True where a key takes part
    cross: bool = False  # whether queries and keys come from different tokens

    @property
    def in_place(self) -> bool:
        """Whether values lie where outputs do."""
        # The exporter cannot tell whether two free sizes are equal, but whether they are one.
        return self.context_grid_size is self.grid_size or (
            not torch.compiler.is_exporting() and tuple(self.context_grid_size) == tuple(self.grid_size)
        )

    @property
    def query_mask(self) -> Tensor | None:
        """Which queries are tokens and no padding, ``[B, 1, 1, N]``; None: all of them."""
        return None if self.cross else self.attn_mask


class Decomposition(NamedTuple):
    """What an attention hands to its output projection, in parts: ``gate · (matrix @ value + convolved)``."""

    matrix: Tensor  # [B, G, N, M]; a group of value channels is a head, or a part of one
    value: Tensor  # [B, H, M, D], zero where masked
    convolved: Tensor | None  # [B, N, C]
    gate: Tensor | None  # [B, N, C]

    def output(self) -> Tensor:
        """Return the parts put together, ``[B, N, C]``."""
        out = apply_matrix(self.matrix, self.value).transpose(1, 2).flatten(2)
        out = out if self.convolved is None else out + self.convolved
        return out if self.gate is None else out * self.gate


def check_grid(grid_size: Sequence[int]) -> tuple[int, ...]:
    """Return the grid as a tuple, or raise ValueError if it is not 1 to 3 positive sizes."""
    if not is_grid(grid_size):
        raise ValueError(f"grid_size must hold one to three positive sizes, such as (14, 14), got {grid_size!r}")
    return tuple(grid_size)
