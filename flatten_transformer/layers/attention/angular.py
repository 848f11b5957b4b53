"""Linear angular attention: You et al., "Castling-ViT", CVPR 2023, arXiv 2211.10526."""

# B batch, H heads, N tokens, D channels per head.

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.attention.rows import hide, unit


@register_attention("angular", rank_restoration=True)
class AngularAttention(GridAttention):
    """Attention in O(N): ``x = ½ V + (1/π) q̂ (k̂ᵀ V)``, then ``x / ‖x‖``; q̂, k̂ and the result have norm 1 in each head.

    Castling-ViT (arXiv 2211.10526): the similarity 1 - θ/π of the angle θ between query and key, expanded to first
    order in its cosine. The expansion has ``½ Σ_j V_j``; the released code has each token's own ``½ V_i`` in its
    place, and so does this, since the published numbers come from it: queries and values must lie on the same tokens.
    The masked softmax branch that the paper trains beside it, and drops afterwards, is not here. The convolution runs
    over the token grid, with kernels that the heads share; in the released code it is 9 taps along the flattened
    tokens, one kernel a head, which mixes the ends of rows.

    Args: as :class:`GridAttention`.

    Example:
        >>> AngularAttention(dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    attends_elsewhere = False  # it adds half of each token's own value

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        context = unit(k, 3).transpose(2, 3) @ v  # [B, H, D, D]
        return unit(v / 2 + unit(q, 3) @ context / math.pi, 3)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ½ I + (1/π) cos(Q, K), each row divided by the norm of its product with V, ``[B, H, N, N]``.

        The division makes the matrix depend on the values.
        """
        cosine = (q / q.norm(dim=3, keepdim=True)) @ (k / k.norm(dim=3, keepdim=True)).transpose(2, 3)
        own = torch.eye(q.shape[2], dtype=q.dtype, device=q.device) / 2
        matrix = hide(own + cosine / math.pi, layout.attn_mask)
        return matrix / (matrix @ v).norm(dim=3, keepdim=True).clamp_min(1e-6)
