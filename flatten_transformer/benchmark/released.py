"""The released form of focused linear attention, step by step as in the authors' code: the baseline.

Written from the description in the design notes, in this library's names. Correct and slow: a dozen passes over queries
and keys. For benchmarks and tests alone.
"""

# B batch, N queries, M keys, C = H heads × D channels per head.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.benchmark.report import RELEASED
from flatten_transformer.layers import set_backend
from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.dispatch import Backend, register_backend


def released_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    focusing_factor: float = 3.0,
    positional_encoding: Tensor | None = None,
    temperature: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    grid_size: Sequence[int] = (),
) -> Tensor:
    """Attend as the released code does between its projections, in the dtype of the inputs.

    Args:
        query: ``[B, N, C]``.
        key: ``[B, M, C]``.
        value: ``[B, M, C]``.
        num_heads: Heads H; divides C.
        focusing_factor: The power p.
        positional_encoding: ``[1, M, C]``, added to the keys.
        temperature: ``[1, 1, C]``, the released ``softplus(scale)``; divides queries and keys.
        conv_weight: ``[D, 1, height, width]``: adds the depthwise convolution of the values, which all heads share.
        conv_bias: ``[D]``.
        grid_size: Height and width of the grid of the tokens, for the convolution.

    Returns:
        ``[B, N, C]``.

    Example:
        >>> q, k, v = torch.randn(3, 2, 196, 192).unbind(0)
        >>> released_attention(q, k, v, num_heads=3).shape
        torch.Size([2, 196, 192])
    """
    if positional_encoding is not None:
        key = key + positional_encoding
    q, k = torch.relu(query) + 1e-6, torch.relu(key) + 1e-6
    if temperature is not None:
        q, k = q / temperature, k / temperature
    q_norm, k_norm = q.norm(dim=-1, keepdim=True), k.norm(dim=-1, keepdim=True)
    q, k = q**focusing_factor, k**focusing_factor
    q, k = q / q.norm(dim=-1, keepdim=True) * q_norm, k / k.norm(dim=-1, keepdim=True) * k_norm

    q, k, v = (_split_heads(x, num_heads) for x in (q, k, value))  # [B·H, N or M, D]
    z = 1 / (q @ k.mean(dim=1, keepdim=True).transpose(1, 2) + 1e-6)  # [B·H, N, 1]
    share = k.shape[1] ** -0.5
    out = q @ ((k.transpose(1, 2) * share) @ (v * share)) * z
    if conv_weight is not None:
        out = out + _convolve(v, conv_weight, conv_bias, grid_size)
    return _merge_heads(out, num_heads)


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return ``[B·H, N, D]`` of ``[B, N, C]``."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2).flatten(0, 1)


def _merge_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return ``[B, N, C]`` of ``[B·H, N, D]``."""
    return x.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)


def _convolve(v: Tensor, weight: Tensor, bias: Tensor | None, grid_size: Sequence[int]) -> Tensor:
    """Return the depthwise convolution of ``[B·H, M, D]`` over the grid, in the same shape."""
    image = v.transpose(1, 2).unflatten(2, tuple(grid_size))  # [B·H, D, height, width]
    image = F.conv2d(image, weight, bias, padding=weight.shape[2] // 2, groups=weight.shape[0])
    return image.flatten(2).transpose(1, 2)


def use_released_form(model: nn.Module) -> nn.Module:
    """Switch every focused linear attention of a model to the released form; return the model.

    Features it lacks (key masks, norms per head, prefix tokens, grids of one or three axes) raise RuntimeError at the call.

    Example:
        >>> from flatten_transformer import FocusedLinearAttention
        >>> layer, x = FocusedLinearAttention(8, 2, (3, 4)), torch.randn(1, 12, 8)
        >>> ours = layer(x)
        >>> torch.allclose(use_released_form(layer)(x), ours, atol=1e-6)
        True
    """
    set_backend(model, cast("Backend", RELEASED))
    return model


def _attend(a: Arguments, attn_mask: Tensor | None) -> Tensor:
    """Return ``[B, H, N, D]``; a backend like any other."""
    if attn_mask is not None or not a.joint:
        raise RuntimeError("the released form has no key mask, which padded windows need, and joint norms only")
    if a.conv_weight is not None and (a.conv_weight.ndim != 4 or math.prod(a.grid_size) != a.value.shape[2]):
        raise RuntimeError("the released form convolves planes without prefix tokens only")
    out = released_attention(
        *(x.transpose(1, 2).flatten(2) for x in (a.query, a.key, a.value)),  # views: split by the layer
        num_heads=a.query.shape[1],
        focusing_factor=a.focusing_factor,
        positional_encoding=None if a.key_encoding is None else a.key_encoding.transpose(0, 1).flatten(1)[None],
        temperature=None if a.temperature is None else a.temperature.reshape(1, 1, -1).to(a.query.dtype),
        conv_weight=a.conv_weight,
        conv_bias=a.conv_bias,
        grid_size=a.grid_size,
    )
    return out.unflatten(2, (a.query.shape[1], -1)).transpose(1, 2)


register_backend(RELEASED, _attend)
