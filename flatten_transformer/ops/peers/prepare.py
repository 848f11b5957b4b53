"""What every peer does first: check, hide what is masked, sum in float32."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import torch
from torch import Tensor

from flatten_transformer.ops.checks import check_attention, check_mask
from flatten_transformer.ops.precision import sum_dtype


def prepare(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three tensors checked and in the dtype of sums, masked keys and values zero.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part.

    Raises:
        ValueError: If shapes, dtypes or the mask do not fit.
    """
    check_attention(query, key, value)
    check_mask(attn_mask, key)
    dtype = sum_dtype(query)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is None:
        return query, key, value
    hidden = ~attn_mask.transpose(2, 3)  # [B, 1, M, 1]
    return query, key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)


def kept_keys(key: Tensor, attn_mask: Tensor | None) -> Tensor | int:
    """Return how many keys of ``[B, H, M, D]`` take part: M, or ``[B, 1, 1, 1]``; at least 1, as a divisor."""
    return key.shape[2] or 1 if attn_mask is None else attn_mask.sum(dim=3, keepdim=True).clamp(min=1)


def masked_softmax(scores: Tensor, kept: Tensor | None, dim: int) -> Tensor:
    """Return the softmax over what is kept, 0 elsewhere; where nothing is kept, equal weights: for values that are zeros.

    Args:
        scores: Any shape.
        kept: Boolean, broadcastable to ``scores``; None keeps everything.
        dim: The axis that sums to 1.

    Example:
        >>> masked_softmax(torch.zeros(1, 4), torch.tensor([True, True, False, False]), dim=1)
        tensor([[0.5000, 0.5000, 0.0000, 0.0000]])
    """
    if kept is None:
        return scores.softmax(dim)
    return scores.masked_fill(~kept, torch.finfo(scores.dtype).min).softmax(dim)


def unit(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """Return ``x / max(‖x‖, 1e-6)`` with the norm over ``dims``: zeros stay zero, and no square leaves the range.

    The largest entry is divided out first: a constant, so that the gradient need not pass through it.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1)
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if x.numel() == 0:
        return x
    largest = torch.linalg.vector_norm(x.detach(), torch.inf, dim=dims, keepdim=True).clamp_min(1e-6)
    scaled = x / largest
    return scaled / torch.maximum(torch.linalg.vector_norm(scaled, dim=dims, keepdim=True), 1e-6 / largest)
