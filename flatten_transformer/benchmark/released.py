"""The released form of focused linear attention, step by step as the authors' code computes it: the one to beat.

Written out from the description in the library's design notes, in this library's names. It is right, and slow: a dozen
passes over the queries and the keys. Nothing but benchmarks and tests may call it.
"""

# B batch, N queries, M keys, C = H heads × D channels per head.

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

_LAYER = "flatten_transformer.layers.attention.focused"


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


@contextmanager
def on_released_form() -> Iterator[None]:
    """Let every FLatten model compute its attention by the released form, for as long as this lasts.

    What the released form cannot do (key masks, norms per head, prefix tokens, grids of one or three axes) raises
    RuntimeError at the call.

    Example:
        >>> from flatten_transformer import FocusedLinearAttention
        >>> layer, x = FocusedLinearAttention(8, 2, (3, 4)), torch.randn(1, 12, 8)
        >>> ours = layer(x)
        >>> with on_released_form():
        ...     torch.allclose(layer(x), ours, atol=1e-6)
        True
    """
    with patch.object(importlib.import_module(_LAYER), "focused_linear_attention", _as_the_layer_calls_it):
        yield


def _as_the_layer_calls_it(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    *,
    temperature: Tensor | None,
    norm: str,
    key_encoding: Tensor | None,
    conv_weight: Tensor | None,
    grid_size: Sequence[int] | None,
    backend: str | None,
    **others: Any,
) -> Tensor:
    """Return ``[B, H, N, D]``; arguments and shapes are those of ``flatten_transformer.focused_linear_attention``."""
    if attn_mask is not None or norm != "joint":
        raise RuntimeError("the released form has no key mask, which padded windows need, and joint norms only")
    if conv_weight is not None and (conv_weight.ndim != 4 or math.prod(grid_size or ()) != value.shape[2]):
        raise RuntimeError("the released form convolves planes without prefix tokens only")
    num_heads = query.shape[1]
    q, k, v = (x.transpose(1, 2).flatten(2) for x in (query, key, value))  # views: the layer has split them
    out = released_attention(
        q,
        k,
        v,
        num_heads=num_heads,
        positional_encoding=None if key_encoding is None else key_encoding.transpose(0, 1).flatten(1)[None],
        temperature=None if temperature is None else temperature.reshape(1, 1, -1).to(q.dtype),
        conv_weight=conv_weight,
        grid_size=grid_size or (),
        **{name: option for name, option in others.items() if option is not None},  # one it does not know is a TypeError
    )
    return out.unflatten(2, (num_heads, -1)).transpose(1, 2)
