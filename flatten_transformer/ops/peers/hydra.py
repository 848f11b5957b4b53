"""Hydra attention: Bolya et al., "Hydra Attention: Efficient Attention with Many Heads", ECCVW 2022, arXiv 2209.07484."""

# B batch, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

from torch import Tensor

from flatten_transformer.ops.peers.prepare import prepare, unit
from flatten_transformer.ops.precision import without_autocast


def hydra_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attend with as many heads as channels: ``φ(Q) ⊙ Σ_j φ(K_j) ⊙ V_j`` with φ(x) = x / ‖x‖.

    The cosine kernel takes its norms over all channels of a token. Nothing divides by the sum of the weights: they
    may be negative. Each channel is a head, so how ``H`` and ``D`` share the channels changes nothing.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, D]``.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part.

    Returns:
        ``[B, H, N, D]`` in ``query.dtype``.

    Raises:
        ValueError: If shapes do not fit, or values have other channels than keys.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> hydra_attention(q, k, v).shape
        torch.Size([2, 4, 196, 32])
    """
    q, k, v = prepare(query, key, value, attn_mask)
    if k.shape != v.shape:
        raise ValueError(
            f"hydra attention multiplies keys and values channel by channel: they must have one shape, got key "
            f"{list(k.shape)} and value {list(v.shape)}"
        )
    with without_autocast(query.device.type):
        return (unit(q, (1, 3)) * (unit(k, (1, 3)) * v).sum(dim=2, keepdim=True)).to(query.dtype)
