"""Softmax attention, the quadratic standard: Vaswani et al., "Attention is All You Need", NeurIPS 2017, arXiv 1706.03762."""

# B batch, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.attention.rows import softmax_rows


@register_attention("softmax")
class SoftmaxAttention(GridAttention):
    """Attention in O(N·M): ``softmax(Q Kᵀ / √D) V``, by PyTorch's kernels: the baseline of all others.

    Masks over single query-key pairs, which it alone could apply, are refused: attentions are exchangeable. A sample
    whose keys are all masked gives zeros.

    Args: as :class:`GridAttention`.

    Example:
        >>> SoftmaxAttention(dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    wide_sums = False  # PyTorch's kernels sum in float32 by themselves

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        mask = layout.attn_mask
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.expand(-1, -1, q.shape[2], k.shape[2]))

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return softmax(QKᵀ/√D), ``[B, H, N, M]`` (arXiv 1706.03762, eq. 1)."""
        return softmax_rows(q @ k.transpose(2, 3) / q.shape[3] ** 0.5, layout.attn_mask)
