"""Masks of other libraries as masks of keys."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_keys(name: str, mask: Tensor) -> Tensor:
    """Return where a key takes part, of a mask that is added to scores: 0 there, elsewhere minus infinity or the least number.

    Graphs that are being compiled hold no check: there every other number leaves the key out.

    Args:
        name: What the mask is called in the error.
        mask: Floats, any shape.

    Returns:
        Booleans of the same shape.

    Raises:
        ValueError: If a number lies between: keys cannot be weighted.

    Example:
        >>> kept_keys("mask", torch.tensor([0.0, -torch.inf]))
        tensor([ True, False])
    """
    kept = mask == 0
    if not torch.compiler.is_compiling() and not bool((kept | (mask <= torch.finfo(mask.dtype).min)).all()):
        raise ValueError(f"{name} must be boolean, or 0 and minus infinity: keys cannot be weighted by numbers between")
    return kept
