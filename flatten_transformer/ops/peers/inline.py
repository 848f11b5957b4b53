"""InLine attention: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

from torch import Tensor

from flatten_transformer.ops.peers.prepare import kept_keys, prepare
from flatten_transformer.ops.precision import without_autocast


def inline_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attend in O(N + M), normalised by subtraction: ``Q (Kᵀ V) s/M + (1 - s Q · mean(K)) mean(V)``, s = 1/√D.

    ArXiv 2412.06590, eq. 5: the weight of key j is its product with the query, minus the mean of these products, plus
    1/M. Weights sum to 1 and may be negative; distinct queries have distinct weights, which division does not
    guarantee. φ is the identity and s/M the scale of the released code.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> inline_attention(q, k, v).shape
        torch.Size([2, 4, 196, 32])
    """
    q, k, v = prepare(query, key, value, attn_mask)
    kept = kept_keys(k, attn_mask)
    with without_autocast(query.device.type):
        mean_key, mean_value = (x.sum(dim=2, keepdim=True) / kept for x in (k, v))
        # (1 - s q·mean(k)) mean(v) + s q (kᵀv/M): the covariance of keys and values, which is small
        covariance = k.transpose(2, 3) @ v / kept - mean_key.transpose(2, 3) * mean_value  # [B, H, D, E]
        return (mean_value + q @ (covariance * (q.shape[3] or 1) ** -0.5)).to(query.dtype)
