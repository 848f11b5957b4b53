"""Resize tensors from one token grid to another."""

# M tokens of the learned grid, N tokens of the new one, C channels.

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SMOOTH = {1: "linear", 2: "bicubic", 3: "trilinear"}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize_grid(tokens: Tensor, grid_size: Sequence[int], new_grid_size: Sequence[int], *, smooth: bool = True) -> Tensor:
    """Interpolate tokens from one grid to another, corners not aligned; the same grid returns them untouched.

    Args:
        tokens: ``[B, M, C]``, M the product of ``grid_size``, last axis fastest.
        grid_size: The grid the tokens lie on: 1, 2 or 3 axes.
        new_grid_size: As many axes.
        smooth: Bicubic on two axes (for learned encodings) instead of bilinear (for features).

    Returns:
        ``[B, N, C]`` in ``tokens.dtype``, N the product of ``new_grid_size``; computed in float32 at least.

    Example:
        >>> resize_grid(torch.rand(1, 14 * 14, 8), (14, 14), (20, 31)).shape
        torch.Size([1, 620, 8])
    """
    # An exported graph with a free size must always resize; at the same size that is the identity.
    if not torch.compiler.is_exporting() and tuple(grid_size) == tuple(new_grid_size):
        return tokens
    batch, count, channels = tokens.shape
    assert count == math.prod(grid_size), (count, grid_size)
    image = tokens.transpose(1, 2).reshape(batch, channels, *grid_size)
    image = image if image.element_size() >= 4 else image.float()  # half precision has no bicubic everywhere
    mode = (_SMOOTH if smooth else _LINEAR)[len(grid_size)]
    image = F.interpolate(image, size=tuple(new_grid_size), mode=mode, align_corners=False)
    return image.flatten(2).transpose(1, 2).to(tokens.dtype)
