"""Linear attention with φ = elu + 1: Katharopoulos et al., "Transformers are RNNs", ICML 2020, arXiv 2006.16236, eq. 7."""

# B batch, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.attention.rows import divide_rows
from flatten_transformer.ops.linear_attention import linear_attention


@register_attention("elu")
class EluAttention(GridAttention):
    """Attention in O(N + M): ``φ(Q) (φ(K)ᵀ V) / (φ(Q) · mean φ(K) + eps)``, φ(x) = elu(x) + 1 (arXiv 2006.16236).

    The mean in place of the sum makes ``eps`` independent of the number of keys; all else cancels.

    Args: as :class:`GridAttention`.

    Example:
        >>> EluAttention(dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return linear_attention(F.elu(q) + 1, F.elu(k) + 1, v, layout.attn_mask)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return φ(Q)φ(K)ᵀ, each row divided by its sum, ``[B, H, N, M]``."""
        return divide_rows(_elu_plus_one(q) @ _elu_plus_one(k).transpose(2, 3), layout.attn_mask)


def _elu_plus_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, torch.exp(torch.minimum(x, torch.zeros_like(x))))
