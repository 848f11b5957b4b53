"""The oracle of the peers: the matrix of each, as its paper has it, quadratic, in any dtype, slow and obviously right.

A matrix is ``[B, G, N, M]``: G groups of value channels, each weighed by its own matrix, in the order of the channels.
Most designs have one group a head; hydra attention has one a channel, PolaFormer two a head.
"""

# B batch, H heads, G groups of value channels, N queries, M keys, A agents, D key channels, E value channels per head.

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flatten_transformer.ops.reference import attention_matrix


def apply_matrix(matrix: Tensor, value: Tensor) -> Tensor:
    """Weigh values by the matrix of their group: ``matrix @ value``.

    Args:
        matrix: ``[B, G, N, M]``; G divides the channels of all heads.
        value: ``[B, H, M, E]``.

    Returns:
        ``[B, H, N, E]``.

    Example:
        >>> apply_matrix(torch.ones(1, 4, 2, 3), torch.ones(1, 2, 3, 6)).shape  # two groups a head
        torch.Size([1, 2, 2, 6])
    """
    heads = value.shape[1]
    groups = value.transpose(1, 2).flatten(2).unflatten(2, (matrix.shape[1], -1)).transpose(1, 2)  # [B, G, M, H·E/G]
    merged = (matrix @ groups).transpose(1, 2).flatten(2)  # [B, N, H·E]
    return merged.unflatten(2, (heads, -1)).transpose(1, 2)


def elu_matrix(query: Tensor, key: Tensor, attn_mask: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Return φ(Q)φ(K)ᵀ with φ = elu + 1, each row divided by its sum, ``[B, H, N, M]`` (arXiv 2006.16236, eq. 7)."""
    return _divide_rows(_elu_plus_one(query) @ _elu_plus_one(key).transpose(2, 3), attn_mask, eps)


def _elu_plus_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, torch.exp(torch.minimum(x, torch.zeros_like(x))))


def hydra_matrix(query: Tensor, key: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return the matrix of each channel, of rank one, ``[B, H·D, N, M]`` (arXiv 2209.07484)."""
    q = (query / query.norm(dim=(1, 3), keepdim=True)).transpose(2, 3).flatten(1, 2)  # [B, H·D, N]
    k = (key / key.norm(dim=(1, 3), keepdim=True)).transpose(2, 3).flatten(1, 2)
    return _hide(q[:, :, :, None] * k[:, :, None, :], attn_mask)


def efficient_matrix(query: Tensor, key: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return softmax over channels of Q times softmax over tokens of K, ``[B, H, N, M]`` (arXiv 1812.01243)."""
    weights = key.exp() if attn_mask is None else key.exp() * attn_mask.transpose(2, 3)
    total = weights.sum(dim=2, keepdim=True)
    spread = weights / total.where(total > 0, 1)
    return query.exp() / query.exp().sum(dim=3, keepdim=True) @ spread.transpose(2, 3)


def angular_matrix(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return ½ I + (1/π) cos(Q, K), each row divided by the norm of what it makes of V, ``[B, H, N, N]``.

    ArXiv 2211.10526 in the form of its released code, see :func:`flatten_transformer.ops.peers.angular_attention`.
    The division makes the matrix depend on the values.
    """
    cosine = (query / query.norm(dim=3, keepdim=True)) @ (key / key.norm(dim=3, keepdim=True)).transpose(2, 3)
    own = torch.eye(query.shape[2], dtype=query.dtype, device=query.device) / 2
    matrix = _hide(own + cosine / math.pi, attn_mask)
    return matrix / (matrix @ value).norm(dim=3, keepdim=True).clamp_min(1e-6)


def softmax_matrix(query: Tensor, key: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return softmax(QKᵀ/√D), ``[B, H, N, M]`` (arXiv 1706.03762, eq. 1)."""
    return _softmax_rows(query @ key.transpose(2, 3) / query.shape[3] ** 0.5, attn_mask)


def inline_matrix(query: Tensor, key: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return QKᵀ/(M√D), minus each row's mean, plus 1/M, ``[B, H, N, M]``; rows sum to 1 (arXiv 2412.06590, eq. 5)."""
    kept = key.shape[2] if attn_mask is None else attn_mask.sum(dim=3, keepdim=True).clamp(min=1)
    products = _hide(query @ key.transpose(2, 3), attn_mask) / query.shape[3] ** 0.5 / kept
    centred = products - products.sum(dim=3, keepdim=True) / kept
    return _hide(centred + torch.ones_like(products) / kept, attn_mask)


def agent_matrix(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    *,
    agents: Tensor,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """Return softmax(QAᵀ/√D + B₂) softmax(AKᵀ/√D + B₁), ``[B, H, N, M]`` (arXiv 2312.08874).

    Args and shapes as :func:`flatten_transformer.ops.peers.agent_attention`.
    """
    spread = query @ agents.transpose(2, 3) / query.shape[3] ** 0.5
    gather = agents @ key.transpose(2, 3) / query.shape[3] ** 0.5
    spread = spread if query_bias is None else spread + query_bias
    gather = gather if key_bias is None else gather + key_bias
    return _softmax_rows(spread, None) @ _softmax_rows(gather, attn_mask)


def pool_agents(query: Tensor, grid_size: Sequence[int], agents: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Return the mean query of each bin, ``[B, H, A, D]``: bin i of n covers ⌊i·size/n⌋ to ⌈(i+1)·size/n⌉ of an axis.

    Args and shapes as :func:`flatten_transformer.ops.peers.pool_agents`.
    """
    kept = torch.ones_like(query[:, :1, :, :1]) if mask is None else mask.transpose(2, 3).expand(query.shape[0], 1, -1, 1)
    kept = kept.to(query.dtype)
    positions = torch.cartesian_prod(*(torch.arange(size) for size in grid_size)).reshape(-1, len(grid_size))
    pooled = []
    for bin_ in itertools.product(*map(range, agents)):
        inside = torch.ones(len(positions), dtype=torch.bool)
        for axis, (i, n, size) in enumerate(zip(bin_, agents, grid_size, strict=True)):
            inside &= (positions[:, axis] >= i * size // n) & (positions[:, axis] < -(-(i + 1) * size // n))
        weights = kept[:, :, inside]  # [B, 1, tokens of the bin, 1]
        pooled.append((query[:, :, inside] * weights).sum(dim=2) / weights.sum(dim=2).clamp(min=1))
    return torch.stack(pooled, dim=2)


def polaformer_matrix(query: Tensor, key: Tensor, attn_mask: Tensor | None = None, *, power: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the matrices of equal and of opposite signs of each head in turn, ``[B, 2H, N, M]`` (arXiv 2501.15061).

    Args and shapes as :func:`flatten_transformer.ops.peers.polaformer_attention`.
    """
    q_plus, q_minus, k_plus, k_minus = (x.relu() ** power[:, None, :] for x in (query, -query, key, -key))
    same = q_plus @ k_plus.transpose(2, 3) + q_minus @ k_minus.transpose(2, 3)
    opposite = q_minus @ k_plus.transpose(2, 3) + q_plus @ k_minus.transpose(2, 3)
    return torch.stack([_divide_rows(x, attn_mask, eps) for x in (same, opposite)], dim=2).flatten(1, 2)


def relu_matrix(query: Tensor, key: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return ReLU(Q)ReLU(K)ᵀ, each row divided by its sum, ``[B, H, N, M]``: focused linear attention with p = 1."""
    return attention_matrix(query, key, attn_mask, focusing_factor=1)


def _divide_rows(products: Tensor, attn_mask: Tensor | None, eps: float) -> Tensor:
    """Divide by the number of kept keys, then each row by its sum plus ``eps``: means, as the released codes take them."""
    kept = products.shape[3] if attn_mask is None else attn_mask.sum(dim=3, keepdim=True).clamp(min=1)
    means = _hide(products, attn_mask) / kept
    return means / (means.sum(dim=3, keepdim=True) + eps)


def _softmax_rows(scores: Tensor, attn_mask: Tensor | None) -> Tensor:
    weights = _hide((scores - scores.amax(dim=3, keepdim=True).detach()).exp(), attn_mask)
    total = weights.sum(dim=3, keepdim=True)
    return weights / total.where(total > 0, 1)


def _hide(matrix: Tensor, attn_mask: Tensor | None) -> Tensor:
    return matrix if attn_mask is None else matrix.masked_fill(~attn_mask, 0)
