"""Linear attention with φ = elu + 1: Katharopoulos et al., "Transformers are RNNs", ICML 2020, arXiv 2006.16236, eq. 7."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.ops.linear_attention import linear_attention
from flatten_transformer.ops.peers.prepare import prepare
from flatten_transformer.ops.precision import without_autocast


def elu_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Attend in O(N + M): ``φ(Q) (φ(K)ᵀ V) / (φ(Q) · mean φ(K) + eps)``, φ(x) = elu(x) + 1.

    Arguments and result as :func:`flatten_transformer.ops.linear_attention`, but that queries and keys may have any
    sign. The mean in place of the sum makes ``eps`` independent of the number of keys; all else cancels.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> elu_attention(q, k, v).shape
        torch.Size([2, 4, 196, 32])
    """
    q, k, v = prepare(query, key, value, attn_mask)
    with without_autocast(query.device.type):
        return linear_attention(F.elu(q) + 1, F.elu(k) + 1, v, attn_mask, eps=eps).to(query.dtype)
