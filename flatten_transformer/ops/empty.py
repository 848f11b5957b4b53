"""Attention over an empty batch, no tokens or no channels: the result of scaled_dot_product_attention."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

from torch import Tensor


def is_empty(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether there is nothing to compute: no output, or nothing to attend to."""
    return 0 in query.shape or 0 in key.shape or value.shape[3] == 0


def attend_to_nothing(query: Tensor, key: Tensor, value: Tensor, *others: object) -> Tensor:
    """Return zeros ``[B, H, N, E]`` that send zero gradients to every tensor.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        others: Further arguments; floating tensors among them get zero gradients.

    Example:
        >>> attend_to_nothing(torch.rand(1, 2, 3, 4), torch.rand(1, 2, 0, 4), torch.rand(1, 2, 0, 2)).flatten()
        tensor([0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.])
    """
    out = query.new_zeros(*query.shape[:3], value.shape[3])
    for x in (query, key, value, *others):
        if isinstance(x, Tensor) and x.is_floating_point():
            out = out + x[..., :0].sum().to(query.dtype)
    return out
