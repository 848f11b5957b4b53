"""The oracle: the paper's equations as they stand, quadratic, in any dtype, slow and obviously right.

Every fast path is judged by these functions in float64, output and gradients. Nothing here is
tuned; read it to learn what is computed. Source: FLatten Transformer, arXiv 2308.00442, in the
form of the authors' released code (two small epsilons, a mean instead of a sum over the keys).
"""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, relu

from flatten_transformer.ops.checks import Norm


def focused_function(x: Tensor, focusing_factor: float, *, norm: Norm = "joint") -> Tensor:
    """Keep the norm of ``x``, turn its direction: ``f_p(x) = (‖x‖ / ‖x**p‖) · x**p`` (eq. 6).

    Args:
        x: Positive features, ``[B, H, N, D]``.
        focusing_factor: The power p ≥ 1.
        norm: Norms over the channels of all heads of a token (``"joint"``) or of each head (``"per_head"``).

    Returns:
        ``[B, H, N, D]`` in ``x.dtype``.

    Example:
        >>> focused_function(torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2), 1.0)
        tensor([[[[3., 4.]]]])
    """
    dims = (1, 3) if norm == "joint" else (3,)
    powered = x**focusing_factor
    return powered * x.norm(dim=dims, keepdim=True) / powered.norm(dim=dims, keepdim=True)


def attention_matrix(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    *,
    focusing_factor: float = 3.0,
    temperature: Tensor | None = None,
    norm: Norm = "joint",
    eps: float = 1e-6,
) -> Tensor:
    """Return the matrix that focused linear attention never forms: ``φ(Q) φ(K)ᵀ``, normalised (eq. 2, 5).

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        attn_mask: ``[B, 1, 1, M]``, boolean, True where a key takes part.
        focusing_factor: The power p ≥ 1; 1 leaves ReLU linear attention.
        temperature: ``[H, D]``, positive; divides queries and keys.
        norm: See :func:`focused_function`.
        eps: Added to ReLU(x) and to the normaliser.

    Returns:
        ``[B, H, N, M]``; rows sum to just under 1.

    Example:
        >>> q, k = torch.rand(2, 1, 2, 5, 4, dtype=torch.float64).unbind(0)
        >>> attention_matrix(q, k).sum(-1).round(decimals=3)
        tensor([[[1., 1., 1., 1., 1.],
                 [1., 1., 1., 1., 1.]]], dtype=torch.float64)
    """
    query, key = relu(query) + eps, relu(key) + eps
    if temperature is not None:
        query, key = query / temperature[:, None, :], key / temperature[:, None, :]
    query = focused_function(query, focusing_factor, norm=norm)
    key = focused_function(key, focusing_factor, norm=norm)

    products = query @ key.transpose(2, 3)  # [B, H, N, M]
    if attn_mask is None:
        mean_products = products / key.shape[2]
    else:
        kept = attn_mask.sum(dim=3, keepdim=True).clamp(min=1)  # [B, 1, 1, 1]
        mean_products = products.masked_fill(~attn_mask, 0) / kept
    return mean_products / (mean_products.sum(dim=3, keepdim=True) + eps)


def focused_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    focusing_factor: float = 3.0,
    temperature: Tensor | None = None,
    norm: Norm = "joint",
    eps: float = 1e-6,
    key_encoding: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    grid_size: Sequence[int] | None = None,
) -> Tensor:
    """Attend with the matrix of :func:`attention_matrix`: O(N·M), the oracle of the fast paths.

    Args and shapes as :func:`flatten_transformer.focused_linear_attention`.

    Example:
        >>> q, k, v = torch.rand(3, 1, 2, 5, 4).unbind(0)
        >>> focused_linear_attention(q, k, v).shape
        torch.Size([1, 2, 5, 4])
    """
    if attn_mask is not None:
        value = value.where(attn_mask.transpose(2, 3), 0)
    if key_encoding is not None:
        key = key + key_encoding
    matrix = attention_matrix(query, key, attn_mask, focusing_factor=focusing_factor, temperature=temperature, norm=norm, eps=eps)
    if conv_weight is None:
        return matrix @ value
    assert grid_size is not None
    return matrix @ value + depthwise_convolution(value, conv_weight, conv_bias, grid_size)


def depthwise_convolution(value: Tensor, weight: Tensor, bias: Tensor | None, grid_size: Sequence[int]) -> Tensor:
    """Add up the values around each token, each times its tap of the kernel; zeros around the grid (eq. 10).

    Args:
        value: ``[B, H, M, E]``: prefix tokens, which get zeros, then the grid, last axis fastest.
        weight: ``[E, 1, *kernel]``, odd sides.
        bias: ``[E]``.
        grid_size: Sizes of the grid.

    Returns:
        ``[B, H, M, E]``.
    """
    prefix = value.shape[2] - math.prod(grid_size)
    image = value[:, :, prefix:].unflatten(2, tuple(grid_size))  # [B, H, *grid, E]
    convolved = torch.zeros_like(image)
    kernel = weight.shape[2:]
    taps = weight.flatten(1).unbind(1)  # each [E]
    for tap, index in zip(taps, itertools.product(*map(range, kernel)), strict=True):
        moved = image
        for axis, (position, size) in enumerate(zip(index, kernel, strict=True), start=2):
            moved = _shift(moved, position - size // 2, axis)
        convolved = convolved + moved * tap
    if bias is not None:
        convolved = convolved + bias
    return torch.cat([torch.zeros_like(value[:, :, :prefix]), convolved.flatten(2, -2)], dim=2)


def _shift(x: Tensor, step: int, axis: int) -> Tensor:
    """Return ``x[i + step]`` at i, zero beyond the ends."""
    size = x.shape[axis]
    index = torch.arange(size, device=x.device) + step
    inside = (index >= 0) & (index < size)
    shape = [-1 if number == axis else 1 for number in range(x.ndim)]
    return x.index_select(axis, index.clamp(0, size - 1)) * inside.reshape(shape)
