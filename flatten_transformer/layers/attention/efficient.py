"""Efficient attention: Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021, arXiv 1812.01243."""

# B batch, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

from torch import Tensor

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.attention.rows import masked_softmax


@register_attention("efficient")
class EfficientAttention(GridAttention):
    """Attention in O(N + M): ``ρ_q(Q) (ρ_k(K)ᵀ V)``, with the paper's softmax normalisation (arXiv 1812.01243).

    ρ_q is a softmax over the channels of each query and head, ρ_k one over the tokens for each channel of the keys:
    the weights of a query are positive and sum to 1.

    Args: as :class:`GridAttention`.

    Example:
        >>> EfficientAttention(dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        context = masked_softmax(k, layout.kept, dim=2).transpose(2, 3) @ v  # [B, H, D, D]
        return q.softmax(dim=3) @ context

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return the softmax over channels of Q times the softmax over tokens of K, ``[B, H, N, M]``."""
        shares = k.exp() if layout.kept is None else k.exp() * layout.kept
        total = shares.sum(dim=2, keepdim=True)
        spread = shares / total.where(total > 0, 1)
        return q.exp() / q.exp().sum(dim=3, keepdim=True) @ spread.transpose(2, 3)
