"""Token layout of an attention, and the parts of its output."""

# B batch, N queries, M keys, C channels = H heads × D channels per head, G groups of value channels.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flatten_transformer.ops.checks import check_mask, is_grid


class Layout(NamedTuple):
    """Grids of the tokens of one call, and which keys take part."""

    grid_size: Sequence[int]  # of the queries
    context_grid_size: Sequence[int]  # of keys and values
    attn_mask: Tensor | None = None  # [B, 1, 1, M], boolean, True where a key takes part
    cross: bool = False  # whether queries and keys come from different tokens

    @property
    def in_place(self) -> bool:
        """Whether values and outputs lie on one grid."""
        # The exporter cannot tell whether two free sizes are equal, only whether they are one object.
        return self.context_grid_size is self.grid_size or (
            not torch.compiler.is_exporting() and tuple(self.context_grid_size) == tuple(self.grid_size)
        )

    @property
    def query_mask(self) -> Tensor | None:
        """True where a query is a token and no padding, ``[B, 1, 1, N]``; None: all of them."""
        return None if self.cross else self.attn_mask

    @property
    def kept(self) -> Tensor | None:
        """True where a key takes part, beside the keys: ``[B, 1, M, 1]``; None: all of them."""
        return None if self.attn_mask is None else self.attn_mask.transpose(2, 3)

    def hide(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, ``[B, H, M, D]``, with zeros where masked.

        Call it first: a masked NaN must not reach a sum, forward or backward.

        Raises:
            ValueError: If the mask does not fit.
        """
        if self.kept is None:
            return k, v
        check_mask(self.attn_mask, k)
        return k.masked_fill(~self.kept, 0), v.masked_fill(~self.kept, 0)


class Decomposition(NamedTuple):
    """The input of an attention's output projection, in parts: ``gate · (matrix @ value + convolved)``."""

    matrix: Tensor  # [B, G, N, M]; a group of value channels is a head, or a part of one
    value: Tensor  # [B, H, M, D], zero where masked
    convolved: Tensor | None  # [B, N, C]
    gate: Tensor | None  # [B, N, C]

    def output(self) -> Tensor:
        """Return the sum of the parts, gated, ``[B, N, C]``."""
        return combine(merge_heads(apply_matrix(self.matrix, self.value)), self.convolved, self.gate)


def combine(out: Tensor, convolved: Tensor | None, gate: Tensor | None) -> Tensor:
    """Return ``gate · (out + convolved)``, all ``[B, N, C]``."""
    out = out if convolved is None else out + convolved
    return out if gate is None else out * gate


def apply_matrix(matrix: Tensor, value: Tensor) -> Tensor:
    """Weight values by the matrix of their group: ``matrix @ value``.

    Args:
        matrix: ``[B, G, N, M]``; G divides the channels of all heads.
        value: ``[B, H, M, E]``.

    Returns:
        ``[B, H, N, E]``.

    Example:
        >>> apply_matrix(torch.ones(1, 4, 2, 3), torch.ones(1, 2, 3, 6)).shape  # two groups a head
        torch.Size([1, 2, 2, 6])
    """
    heads = value.shape[1]
    groups = merge_heads(value).unflatten(2, (matrix.shape[1], -1)).transpose(1, 2)  # [B, G, M, H·E/G]
    return merge_heads(matrix @ groups).unflatten(2, (heads, -1)).transpose(1, 2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return ``[B, H, N, D]`` of ``[B, N, C]``."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return ``[B, N, C]`` of ``[B, H, N, D]``."""
    return x.transpose(1, 2).flatten(2)


def check_grid(grid_size: Sequence[int], learned: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the grid as a tuple, or raise ValueError unless it is 1 to 3 positive sizes, as many as the learned grid has."""
    if not is_grid(grid_size):
        raise ValueError(f"grid_size must hold one to three positive sizes, such as (14, 14), got {grid_size!r}")
    if learned and len(grid_size) != len(learned):
        raise ValueError(f"the layer was built for {len(learned)} axes, grid_size {learned}; got {tuple(grid_size)}")
    return tuple(grid_size)
