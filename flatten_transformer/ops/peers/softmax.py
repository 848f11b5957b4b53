"""Softmax attention, the quadratic standard: Vaswani et al., "Attention is All You Need", NeurIPS 2017, arXiv 1706.03762."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.ops.checks import check_attention, check_mask


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attend in O(N·M): ``softmax(Q Kᵀ / √D) V``, by PyTorch's kernels; a sample without keys gives zeros.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part. Masks over single pairs, which this
            attention alone could apply, are refused as everywhere: attentions shall be exchangeable.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> softmax_attention(q, k, v).shape
        torch.Size([2, 4, 196, 32])
    """
    check_attention(query, key, value)
    check_mask(attn_mask, key)
    if attn_mask is None:
        return F.scaled_dot_product_attention(query, key, value)
    hidden = ~attn_mask.transpose(2, 3)
    key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
    return F.scaled_dot_product_attention(query, key, value, attn_mask.expand(-1, -1, query.shape[2], key.shape[2]))
