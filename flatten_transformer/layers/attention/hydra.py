"""Hydra attention: Bolya et al., "Hydra Attention: Efficient Attention with Many Heads", ECCVW 2022, arXiv 2209.07484."""

# B batch, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

from torch import Tensor

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.attention.rows import hide, unit


@register_attention("hydra")
class HydraAttention(GridAttention):
    """Attention with as many heads as channels: ``φ(Q) ⊙ Σ_j φ(K_j) ⊙ V_j``, φ(x) = x / ‖x‖ (arXiv 2209.07484).

    The cosine kernel takes its norms over all channels of a token. Nothing divides by the sum of the weights: they
    may be negative. ``num_heads`` changes nothing but ``dwc``.

    Args: as :class:`GridAttention`.

    Example:
        >>> HydraAttention(dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return unit(q, (1, 3)) * (unit(k, (1, 3)) * v).sum(dim=2, keepdim=True)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return the matrix of each channel, of rank one, ``[B, H·D, N, M]``."""
        q, k = ((x / x.norm(dim=(1, 3), keepdim=True)).transpose(2, 3).flatten(1, 2) for x in (q, k))  # [B, H·D, N or M]
        return hide(q[:, :, :, None] * k[:, :, None, :], layout.attn_mask)
