"""Rank restoration: a depthwise convolution of the values over the token grid (FLatten eq. 10-12)."""

# B batch, H heads, M tokens, E channels per head.

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def restore_rank(value: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, grid_size: Sequence[int]) -> Tensor:
    """Convolve the values over their grid; the heads share the kernels, as in the released code.

    Args:
        value: ``[B, H, M, E]``, grid tokens only, last axis of the grid fastest.
        conv_weight: ``[E, 1, *kernel]``, odd sides, one for each axis of the grid.
        conv_bias: ``[E]``.
        grid_size: One to three axes; their product is M.

    Returns:
        ``[B, H, M, E]``.

    Example:
        >>> restore_rank(torch.rand(2, 3, 12, 8), torch.rand(8, 1, 5, 5), None, (3, 4)).shape
        torch.Size([2, 3, 12, 8])
    """
    convolve, padding = _CONVOLVE[len(grid_size)], [size // 2 for size in conv_weight.shape[2:]]
    channels = value.shape[3]
    if channels == 0:  # which convolutions reject
        return value + conv_weight.sum()
    return on_maps(value, grid_size, lambda maps: convolve(maps, conv_weight, conv_bias, padding=padding, groups=channels))


def on_maps(value: Tensor, grid_size: Sequence[int], convolve: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a convolution to the values as maps.

    Args:
        value: ``[B, H, M, E]``, grid tokens only.
        grid_size: One to three axes; their product is M.
        convolve: Keeps the shape of the maps, ``[B·H, E, *grid_size]``.

    Returns:
        ``[B, H, M, E]``.
    """
    batch, heads, _, channels = value.shape
    maps = value.flatten(0, 1).transpose(1, 2).reshape(batch * heads, channels, *grid_size)
    return convolve(maps).flatten(2).transpose(1, 2).unflatten(0, (batch, heads))
