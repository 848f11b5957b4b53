"""Detect function transforms, which kernels with first derivatives only cannot serve."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed(*values: object) -> bool:
    """Return whether a transform of ``torch.func`` is active, or a tensor among the values carries a tangent.

    Example:
        >>> x = torch.ones(2)
        >>> transformed(x)
        False
        >>> torch.func.vmap(lambda y: torch.tensor(transformed(y)))(x)
        tensor([True, True])
    """
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and any(
        isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in values
    )


def numbers_can_be_read(x: Tensor) -> bool:
    """Return whether reading the values of ``x`` is free: on a CPU, without tracing, fake tensors or transforms."""
    return x.device.type == "cpu" and not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    )
