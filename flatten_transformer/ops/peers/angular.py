"""Linear angular attention: You et al., "Castling-ViT", CVPR 2023, arXiv 2211.10526."""

# B batch, H heads, N tokens, D key channels, E value channels per head.

from __future__ import annotations

import math

from torch import Tensor

from flatten_transformer.ops.peers.prepare import prepare, unit
from flatten_transformer.ops.precision import without_autocast


def angular_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attend in O(N): ``x = ½ V + (1/π) q̂ (k̂ᵀ V)``, then ``x / ‖x‖``; q̂, k̂ and the result have norm 1 in each head.

    The similarity 1 - θ/π of the angle θ between query and key, expanded to first order in its cosine. The expansion
    has ``½ Σ_j V_j``; the released code has each token's own ``½ V_i`` in its place, and that is what is computed
    here, since the published numbers come from it. So queries and values must lie on the same tokens. The masked
    softmax branch that the paper trains beside it, and drops afterwards, is not here.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, N, D]``.
        value: ``[B, H, N, E]``.
        attn_mask: Boolean, ``[B, 1, 1, N]``; True where a key takes part.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``.

    Raises:
        ValueError: If shapes do not fit, or there are not as many queries as values.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> angular_attention(q, k, v).norm(dim=3).round(decimals=3).unique()
        tensor([1.])
    """
    q, k, v = prepare(query, key, value, attn_mask)
    if q.shape[2] != v.shape[2]:
        raise ValueError(
            f"linear angular attention adds half of a token's own value to its output: it needs as many queries as "
            f"values, got {q.shape[2]} and {v.shape[2]}"
        )
    with without_autocast(query.device.type):
        context = unit(k, 3).transpose(2, 3) @ v  # [B, H, D, E]
        return unit(v / 2 + unit(q, 3) @ context / math.pi, 3).to(query.dtype)
