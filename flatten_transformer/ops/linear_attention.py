"""Linear attention in portable PyTorch: any device, export, torch.compile, every floating dtype."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from flatten_transformer.ops.checks import (
    Norm,
    check_attention,
    check_focusing_factor,
    check_mask,
    check_norm,
    check_temperature,
)
from flatten_transformer.ops.feature_maps import focused


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
) -> Tensor:
    """Attend in O(N + M) where ``F.scaled_dot_product_attention(query, key, value)`` stood.

    ``O = φ(Q) (φ(K)ᵀ V) / (φ(Q) Σφ(K))`` with ``φ(x) = f_p((ReLU(x) + eps) / temperature)``: eq. (4)-(6)
    of FLatten (arXiv 2308.00442) in the form of the authors' released code. There is no 1/√D. Sums run
    in float32 (float64 for float64 input) whatever the input dtype or autocast.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        attn_mask: Boolean, ``[B, 1, 1, M]`` or broadcastable to it; True where a key takes part, as in
            scaled_dot_product_attention. What lies in a masked key or value never matters, not even NaN.
            A sample whose keys are all masked gives zeros.
        focusing_factor: The power p ≥ 1, any real number. 3 is the paper's, 1 is ReLU linear attention.
        temperature: ``[H, D]``, positive; divides queries and keys (the released softplus(scale)).
        norm: ``"joint"`` takes the norms of f_p over all heads of a token, as the official weights need;
            ``"per_head"`` over each head alone.
        eps: Added to ReLU(x) and to the normaliser; positive, dimensionless.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``.

    Raises:
        ValueError: If shapes, dtypes or options do not fit; for a mask over query-key pairs, which no
            linear-time attention can apply.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> focused_linear_attention(q, k, v, focusing_factor=3).shape
        torch.Size([2, 4, 196, 32])
    """
    check_attention(query, key, value)
    check_focusing_factor(focusing_factor)
    check_norm(norm)
    check_mask(attn_mask, key.shape[0], key.shape[2])
    check_temperature(temperature, query.shape[1], query.shape[3])
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}: a token with no positive channel needs it")

    dtype = _sum_dtype(query)
    with _without_autocast(query.device.type):
        if attn_mask is not None:  # before anything else: a masked NaN must not reach a sum, forward or backward
            hidden = ~attn_mask.transpose(2, 3)  # [B, 1, M, 1]
            key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
        q = _features(query.to(dtype), focusing_factor, temperature, norm, eps)
        k = _features(key.to(dtype), focusing_factor, temperature, norm, eps)
        return linear_attention(q, k, value.to(dtype), attn_mask, eps=eps).to(query.dtype)


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
    out_dtype, dtype = q.dtype, _sum_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if attn_mask is None:
        k = k / k.shape[2]
    else:
        kept = attn_mask.sum(dim=3, keepdim=True).clamp(min=1)  # [B, 1, 1, 1]
        k = (k / kept).masked_fill(~attn_mask.transpose(2, 3), 0)

    with _without_autocast(q.device.type):
        if _quadratic_is_cheaper(q.shape[2], k.shape[2], q.shape[3], v.shape[3]):
            products = q @ k.transpose(2, 3)  # [B, H, N, M], fewer elements than q, k and v have
            return (products @ v / (products.sum(dim=3, keepdim=True) + eps)).to(out_dtype)
        context = k.transpose(2, 3) @ v  # [B, H, D, E]
        normaliser = q @ k.sum(dim=2).unsqueeze(3) + eps  # [B, H, N, 1]
        return (q @ context / normaliser).to(out_dtype)


def _quadratic_is_cheaper(queries: int, keys: int, key_channels: int, value_channels: int) -> bool:
    if torch.compiler.is_exporting():
        return False  # a branch on a size would pin it in the exported graph
    channels = key_channels + value_channels
    return queries * keys * channels < key_channels * value_channels * (queries + keys)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _features(x: Tensor, focusing_factor: float, temperature: Tensor | None, norm: Norm, eps: float) -> Tensor:
    x = torch.relu(x) + eps
    if temperature is not None:
        x = x / temperature.to(x.dtype)[:, None, :]
    return focused(x, focusing_factor, norm=norm)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keep float32 products float32: under autocast a matmul would round them to half precision."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
