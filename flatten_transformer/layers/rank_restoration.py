"""Rank restoration in layers: the convolution that holds the kernels, and values stretched to where outputs lie."""

# B batch, H heads, M value tokens, N output tokens, E channels per head.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from flatten_transformer.layers.grid import resize_grid

Stretch = Literal["grid", "tokens"]
DepthwiseConvolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS: dict[int, type[DepthwiseConvolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def depthwise_convolution(
    channels: int, kernel_size: int, axes: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> DepthwiseConvolution:
    """Return a size-keeping depthwise convolution over 1, 2 or 3 axes, one kernel a channel.

    Raises:
        ValueError: If ``kernel_size`` is not odd and positive: an even one shifts the image.

    Example:
        >>> depthwise_convolution(32, 5, axes=2).weight.shape
        torch.Size([32, 1, 5, 5])
    """
    check_kernel_size(kernel_size)
    return _CONVOLUTIONS[axes](
        channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, device=device, dtype=dtype
    )


def check_kernel_size(kernel_size: int) -> None:
    """Raise ValueError unless a kernel of this side keeps tokens in place."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, so that tokens stay in place, got {kernel_size}")


def stretch_values(value: Tensor, grid_size: Sequence[int], out_grid_size: Sequence[int], *, stretch: Stretch = "grid") -> Tensor:
    """Interpolate values to the grid of the outputs, so that they can be convolved there.

    Args:
        value: ``[B, H, M, E]``, grid tokens only.
        grid_size: The grid of the M values.
        out_grid_size: The grid of the N outputs.
        stretch: ``"grid"`` interpolates along the axes of the grid; ``"tokens"`` along the flattened token
            axis, which mixes rows, as the released code does under spatial reduction.

    Returns:
        ``[B, H, N, E]``.

    Example:
        >>> stretch_values(torch.rand(2, 3, 12, 8), (3, 4), (6, 8)).shape
        torch.Size([2, 3, 48, 8])
    """
    tokens = value.flatten(0, 1)  # [B·H, M, E]
    if stretch == "grid":
        tokens = resize_grid(tokens, grid_size, out_grid_size, smooth=False)
    else:
        tokens = resize_grid(tokens, [math.prod(grid_size)], [math.prod(out_grid_size)])
    return tokens.unflatten(0, value.shape[:2])
