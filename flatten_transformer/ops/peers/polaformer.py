"""Polarity-aware attention: Meng et al., "PolaFormer: Polarity-aware Linear Attention for Vision Transformers", ICLR 2025."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import torch
from torch import Tensor, relu

from flatten_transformer.ops.checks import shape_of
from flatten_transformer.ops.linear_attention import linear_attention
from flatten_transformer.ops.peers.prepare import prepare
from flatten_transformer.ops.precision import without_autocast


def polaformer_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, power: Tensor, eps: float = 1e-6
) -> Tensor:
    """Attend in O(N + M) by products of the same sign for one half of the values, of opposite signs for the other.

    ArXiv 2501.15061: with ``x± = ReLU(±x)**power``, ``φ_same(q) = (q⁺, q⁻)``, ``φ_opposite(q) = (q⁻, q⁺)`` and
    ``φ(k) = (k⁺, k⁻)``, each half is linear attention normalised by its own sum. Powers above 5 of entries
    above a few thousand leave the range of float32.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``, E even: its first half is weighed by same signs.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part.
        power: ``[H, D]``, above 1: larger is sharper.
        eps: Added to the normalisers; dimensionless.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``.

    Raises:
        ValueError: If shapes do not fit, or E is odd.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> polaformer_attention(q, k, v, power=torch.full((4, 32), 3.0)).shape
        torch.Size([2, 4, 196, 32])
    """
    q, k, v = prepare(query, key, value, attn_mask)
    check_polarity(value, power, query)
    exponent = power.to(q.dtype)[:, None, :]
    with without_autocast(query.device.type):
        q_plus, q_minus, k_plus, k_minus = (relu(x) ** exponent for x in (q, -q, k, -k))
        keys = torch.cat([k_plus, k_minus], dim=3)  # [B, H, M, 2D]
        first, second = v.chunk(2, dim=3)
        same = linear_attention(torch.cat([q_plus, q_minus], dim=3), keys, first, attn_mask, eps=eps)
        opposite = linear_attention(torch.cat([q_minus, q_plus], dim=3), keys, second, attn_mask, eps=eps)
        return torch.cat([same, opposite], dim=3).to(query.dtype)


def check_polarity(value: Tensor, power: Tensor, query: Tensor) -> None:
    """Raise ValueError unless values ``[B, H, M, E]`` have two halves and there is one power a channel of each head."""
    if value.shape[3] % 2:
        raise ValueError(
            f"polaformer attention weighs the values in two halves: their channels per head must be even, got {value.shape[3]}"
        )
    wanted = [query.shape[1], query.shape[3]]
    if shape_of(power) != wanted:
        raise ValueError(f"power must be [heads, channels] = {wanted}, got {shape_of(power)}")
