"""Precision of sums, and the scale that keeps them in range."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_ROOM = 52  # bits that eps may still lose after scaling
_MAX_SHIFT = 32


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that sums over ``x`` are kept in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def shift(eps: float) -> float:
    """Return the power of two that scales features down so that sums of the largest inputs stay finite.

    Features are at least ``eps``, and scaling by a power of two is exact. Attention depends on the scale of its features
    only through the ``eps`` of its normaliser, which is scaled along.

    Example:
        >>> shift(1e-6) == 2.0**-32, shift(1e-30)
        (True, 1.0)
    """
    return 2.0 ** -min(max(math.frexp(eps)[1] + _ROOM, 0), _MAX_SHIFT)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keep float32 products float32: under autocast a matmul would round them to half precision."""
    if _autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@torch.compiler.assume_constant_result  # Dynamo in PyTorch 2.8 and 2.9 cannot trace it
def _autocast_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)
