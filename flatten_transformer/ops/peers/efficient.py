"""Efficient attention: Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021, arXiv 1812.01243."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

from torch import Tensor

from flatten_transformer.ops.peers.prepare import masked_softmax, prepare
from flatten_transformer.ops.precision import without_autocast


def efficient_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attend in O(N + M): ``ρ_q(Q) (ρ_k(K)ᵀ V)``, the paper's softmax normalisation.

    ρ_q is a softmax over the channels of each query and head, ρ_k one over the tokens for each channel of the keys:
    the weights of a query are positive and sum to 1.

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
        >>> efficient_attention(q, k, v).shape
        torch.Size([2, 4, 196, 32])
    """
    q, k, v = prepare(query, key, value, attn_mask)
    kept = None if attn_mask is None else attn_mask.transpose(2, 3)  # [B, 1, M, 1]
    with without_autocast(query.device.type):
        context = masked_softmax(k, kept, dim=2).transpose(2, 3) @ v  # [B, H, D, E]
        return (q.softmax(dim=3) @ context).to(query.dtype)
