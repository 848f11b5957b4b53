"""What focused linear attention is told besides its tokens, in one value that every backend takes."""

# H heads, M keys, D key channels, E value channels per head.

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from flatten_transformer.ops.checks import Norm


class Options(NamedTuple):
    """The options of :func:`flatten_transformer.focused_linear_attention`, which explains them."""

    focusing_factor: float = 3.0
    temperature: Tensor | None = None  # [H, D]
    norm: Norm = "joint"
    eps: float = 1e-6
    key_encoding: Tensor | None = None  # [H, M, D]
    conv_weight: Tensor | None = None  # [E, 1, *kernel]
    conv_bias: Tensor | None = None  # [E]
    grid_size: tuple[int, ...] = ()  # of the convolved tokens; empty without a convolution
