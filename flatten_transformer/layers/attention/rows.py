"""Numerics shared by the designs: masked sums and norms for ``mix``, rows of a literal matrix for ``weights``."""

# B batch, G groups of value channels, N queries, M keys.

from __future__ import annotations

import torch
from torch import Tensor

from flatten_transformer.ops.precision import sum_dtype

# For mix -----------------------------------------------------------------------------------------------------------------


def masked_mean(x: Tensor, kept: Tensor | None) -> Tensor:
    """Return the mean of the kept tokens of ``[B, H, M, D]``, ``[B, H, 1, D]``; zeros where none is kept.

    Args:
        x: Tokens; masked ones may hold anything, even NaN.
        kept: Boolean, ``[B, 1, M, 1]``; None keeps all.
    """
    if x.shape[2] == 0:
        return x.sum(dim=2, keepdim=True)
    if kept is None:
        return x.mean(dim=2, keepdim=True)
    share = x.shape[2] / count(kept).to(sum_dtype(x))
    return x.masked_fill(~kept, 0).mean(dim=2, keepdim=True) * share.to(x.dtype)  # a sum could leave float16


def count(kept: Tensor) -> Tensor:
    """Return how many tokens of ``[B, 1, M, 1]`` are kept, ``[B, 1, 1, 1]``; at least 1, as a divisor."""
    return kept.sum(dim=2, keepdim=True).clamp(min=1)


def masked_softmax(scores: Tensor, kept: Tensor | None, dim: int) -> Tensor:
    """Return the softmax over the kept scores, 0 elsewhere; equal weights, for values of zero, where none is kept.

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

    The largest entry is divided out first: a constant, through which no gradient need pass.

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


# For weights, slow and obviously right: the oracle ---------------------------------------------------------------------


def divide_rows(products: Tensor, attn_mask: Tensor | None, eps: float = 1e-6) -> Tensor:
    """Divide ``[B, G, N, M]`` by the number of kept keys, then each row by its sum plus ``eps``, as the released codes do."""
    kept = products.shape[3] if attn_mask is None else attn_mask.sum(dim=3, keepdim=True).clamp(min=1)
    means = hide(products, attn_mask) / kept
    return means / (means.sum(dim=3, keepdim=True) + eps)


def softmax_rows(scores: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Return the softmax of each row of ``[B, G, N, M]`` over the keys of the mask; zeros where it keeps none."""
    weights = hide((scores - scores.amax(dim=3, keepdim=True).detach()).exp(), attn_mask)
    total = weights.sum(dim=3, keepdim=True)
    return weights / total.where(total > 0, 1)


def hide(matrix: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Return ``[B, G, N, M]`` with zeros where ``[B, 1, 1, M]`` is False."""
    return matrix if attn_mask is None else matrix.masked_fill(~attn_mask, 0)
