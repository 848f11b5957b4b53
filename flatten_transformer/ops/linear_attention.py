"""Linear attention in portable PyTorch: any device, export, torch.compile, every floating dtype."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from flatten_transformer.ops.checks import check_attention, check_mask
from flatten_transformer.ops.feature_maps import focused
from flatten_transformer.ops.fused import sum_dtype
from flatten_transformer.ops.options import Options
from flatten_transformer.ops.rank_restoration import restore_rank


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: Options) -> Tensor:
    """Attend by PyTorch operations: the backend ``"portable"``.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``, zero where masked.
        value: ``[B, H, M, E]``, zero where masked.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part.
        options: See :func:`flatten_transformer.focused_linear_attention`, which checks all of them.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``.
    """
    dtype = sum_dtype(query)
    if options.key_encoding is not None:
        key = key + options.key_encoding
    with without_autocast(query.device.type):
        q, k = (_features(x.to(dtype), options) for x in (query, key))
        out = linear_attention(q, k, value.to(dtype), attn_mask, eps=options.eps).to(query.dtype)
    if options.conv_weight is None:
        return out
    prefix, tokens = value.split([value.shape[2] - math.prod(options.grid_size), math.prod(options.grid_size)], dim=2)
    restored = restore_rank(tokens, options.conv_weight, options.conv_bias, options.grid_size)
    return out + torch.cat([torch.zeros_like(prefix), restored], dim=2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Attend with non-negative features: ``q (kᵀ v) / (q · mean(k) + eps)``, sums scaled by 1/M.

    Eq. (4) of FLatten (arXiv 2308.00442) in the released form: the mean and 1/M keep sums in range.
    The cheaper order of the two products is taken, so neither time nor memory ever grows as N·M.

    Args:
        q: Query features, ``[B, H, N, D]``, non-negative.
        k: Key features, ``[B, H, M, D]``, non-negative.
        v: Values, ``[B, H, M, E]``.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part.
        eps: Added to the normaliser; dimensionless.

    Returns:
        ``[B, H, N, E]`` in ``q.dtype``; sums are kept in float32 (float64 for float64 input).

    Raises:
        ValueError: If the shapes do not fit; the message holds all three.

    Example:
        >>> q, k, v = torch.rand(3, 2, 4, 196, 32).unbind(0)
        >>> linear_attention(q, k, v).shape
        torch.Size([2, 4, 196, 32])
    """
    check_attention(q, k, v)
    check_mask(attn_mask, k.shape[0], k.shape[2])
    out_dtype, dtype = q.dtype, sum_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    kept: Tensor | int = k.shape[2]
    if attn_mask is not None:
        kept = attn_mask.sum(dim=3, keepdim=True).clamp(min=1)  # [B, 1, 1, 1]
        k = k.masked_fill(~attn_mask.transpose(2, 3), 0)

    with without_autocast(q.device.type):
        if _quadratic_is_cheaper(q.shape[2], k.shape[2], q.shape[3], v.shape[3]):
            products = q @ (k / kept).transpose(2, 3)  # [B, H, N, M], fewer elements than q, k and v have
            return (products @ v / (products.sum(dim=3, keepdim=True) + eps)).to(out_dtype)
        context = k.transpose(2, 3) @ v / kept  # [B, H, D, E]: small, so it is divided instead of k
        normaliser = q @ (k.sum(dim=2).unsqueeze(3) / kept) + eps  # [B, H, N, 1]
        return (q @ context / normaliser).to(out_dtype)


def _quadratic_is_cheaper(queries: int, keys: int, key_channels: int, value_channels: int) -> bool:
    if torch.compiler.is_exporting():
        return False  # a branch on a size would pin it in the exported graph
    channels = key_channels + value_channels
    return queries * keys * channels < key_channels * value_channels * (queries + keys)


def _features(x: Tensor, options: Options) -> Tensor:
    x = torch.relu(x)
    if options.temperature is None:
        x = x + options.eps
    else:  # (x + eps) / temperature in one pass
        inverse = 1 / options.temperature.to(x.dtype)[:, None, :]
        x = torch.addcmul(options.eps * inverse, x, inverse)
    return focused(x, options.focusing_factor, norm=options.norm)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keep float32 products float32: under autocast a matmul would round them to half precision."""
    if _autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@torch.compiler.assume_constant_result  # Dynamo of PyTorch 2.8 and 2.9 cannot look into it
def _autocast_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)
