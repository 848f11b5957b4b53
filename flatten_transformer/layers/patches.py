"""Padding of maps for convolutions over non-overlapping patches."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_patches(image: Tensor, patch_size: int, *, remainder: Literal["pad", "drop"] = "pad") -> Tensor:
    """Pad a map right and bottom with zeros, for a convolution whose kernel and stride are ``patch_size``.

    Args:
        image: ``[B, C, height, width]``.
        patch_size: Side of a patch.
        remainder: Treatment of incomplete patches: ``"pad"`` completes them, so that no pixel is lost; ``"drop"`` leaves
            them to the convolution, which drops them, and pads only a map smaller than one patch.

    Returns:
        The map, the same tensor where there is nothing to pad.

    Example:
        >>> pad_to_patches(torch.rand(1, 3, 217, 333), 4).shape
        torch.Size([1, 3, 220, 336])
        >>> pad_to_patches(torch.rand(1, 3, 3, 10), 4, remainder="drop").shape
        torch.Size([1, 3, 4, 10])
    """
    bottom, right = (_padding(size, patch_size, remainder) for size in image.shape[2:])
    # An exported graph with a free size must always pad; padding by zero is the identity.
    if torch.compiler.is_exporting() or bottom or right:
        return F.pad(image, (0, right, 0, bottom))
    return image


def _padding(size: int, patch: int, remainder: str) -> int:
    if remainder == "drop":
        return patch - size if size < patch else 0  # not max(), which a graph with a free size would keep
    # not -size % patch: torch.compile cannot trace the modulo of a negative size that is free
    return (size + patch - 1) // patch * patch - size
