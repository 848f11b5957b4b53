"""Agent attention: Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", ECCV 2024."""

# B batch, H heads, N queries, M keys, A agents, D key channels, E value channels per head.

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.ops.checks import shape_of
from flatten_transformer.ops.peers.prepare import masked_softmax, prepare
from flatten_transformer.ops.precision import sum_dtype, without_autocast

_POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def agent_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    agents: Tensor,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """Attend through a few agents, in O(A(N + M)): ``softmax(s Q Aᵀ + B₂) softmax(s A Kᵀ + B₁) V``, s = 1/√D.

    ArXiv 2312.08874: agents gather from the keys by softmax attention, and queries from the agents.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part.
        agents: ``[B, H, A, D]``, in the paper pooled queries, see :func:`pool_agents`.
        query_bias: B₂, ``[H, N, A]``.
        key_bias: B₁, ``[H, A, M]``.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> agent_attention(q, k, v, agents=pool_agents(q, (14, 14), (7, 7))).shape
        torch.Size([2, 4, 196, 32])
    """
    q, k, v = prepare(query, key, value, attn_mask)
    _check_agents(query, key, agents, query_bias, key_bias)
    a = agents.to(q.dtype) * (q.shape[3] or 1) ** -0.5
    with without_autocast(query.device.type):
        gather = a @ k.transpose(2, 3)  # [B, H, A, M]
        spread = q @ a.transpose(2, 3)  # [B, H, N, A]
        gather = gather if key_bias is None else gather + key_bias
        spread = spread if query_bias is None else spread + query_bias
        return (spread.softmax(dim=3) @ (masked_softmax(gather, attn_mask, dim=3) @ v)).to(query.dtype)


def pool_agents(query: Tensor, grid_size: Sequence[int], agents: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Average the queries of a grid into a smaller grid of agents, whatever the grid: bins may overlap.

    Args:
        query: ``[B, H, N, D]``, grid tokens only, last axis fastest.
        grid_size: One to three axes; their product is N.
        agents: As many axes, of A agents.
        mask: Boolean, ``[B, 1, 1, N]``; True where a query is a token and no padding. An agent of padding alone is 0.

    Returns:
        ``[B, H, A, D]`` in the dtype of sums.

    Example:
        >>> pool_agents(torch.arange(6.0).reshape(1, 1, 6, 1), (6,), (2,)).flatten()
        tensor([1., 4.])
    """
    batch, heads, _, channels = query.shape
    tokens = query.to(sum_dtype(query))

    def pool(x: Tensor) -> Tensor:  # [B, N, C] -> [B, A, C]
        image = x.transpose(1, 2).reshape(batch, x.shape[2], *grid_size)
        return _POOL[len(grid_size)](image, tuple(agents)).flatten(2).transpose(1, 2)

    if mask is None:
        pooled = pool(tokens.transpose(1, 2).flatten(2))
    else:
        kept = mask.transpose(2, 3).expand(batch, 1, -1, 1)  # [B, 1, N, 1]
        sums = pool(tokens.masked_fill(~kept, 0).transpose(1, 2).flatten(2))
        shares = pool(kept[:, 0].to(tokens.dtype))  # [B, A, 1]
        pooled = sums / shares.where(shares > 0, 1)
    return pooled.unflatten(2, (heads, channels)).transpose(1, 2)


def _check_agents(query: Tensor, key: Tensor, agents: Tensor, query_bias: Tensor | None, key_bias: Tensor | None) -> None:
    batch, heads, queries, channels = query.shape
    if agents.ndim != 4 or agents.shape[:2] != (batch, heads) or agents.shape[3] != channels:
        raise ValueError(
            f"agents must be [batch, heads, agents, channels] as the query {shape_of(query)} is, got {shape_of(agents)}"
        )
    wanted = {"query_bias": [heads, queries, agents.shape[2]], "key_bias": [heads, agents.shape[2], key.shape[2]]}
    for name, bias in (("query_bias", query_bias), ("key_bias", key_bias)):
        if bias is not None and shape_of(bias) != wanted[name]:
            raise ValueError(f"{name} must be {wanted[name]}, got {shape_of(bias)}")
