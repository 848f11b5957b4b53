"""Cost of a model: parameters and multiply-accumulates, the attention products included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, in units.

    Example:
        >>> count_parameters(nn.Linear(4, 2))
        10
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Return the multiply-accumulates of one forward pass on a single input, in units.

    PyTorch's own counter sees every matrix product and convolution that runs, so q(kᵀv), (qkᵀ)v and
    fused softmax attention all count; element-wise work is not counted, as in the papers.

    Args:
        model: Any module of one input.
        input_size: Shape of the input without the batch, such as ``(3, 224, 224)``.

    Example:
        >>> count_macs(nn.Linear(4, 2), (4,))
        8
    """
    parameter = next(model.parameters())
    x = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2
