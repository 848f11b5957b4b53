"""Feature maps φ of linear attention: small pure functions from scores to non-negative features."""

# B batch, H heads, N tokens, D channels per head.

from __future__ import annotations

import torch
from torch import Tensor

from flatten_transformer.ops.checks import Norm, check_focusing_factor, check_norm, shape_of

_LARGEST_MULTIPLIED_POWER = 64  # above it, six or more products: pow is as quick and as exact


def focused(x: Tensor, focusing_factor: float = 3.0, *, norm: Norm = "joint") -> Tensor:
    """Sharpen directions, keep norms: ``f_p(x) = (‖x‖ / ‖x**p‖) · x**p`` for ``x ≥ 0``.

    Eq. (6) of FLatten (arXiv 2308.00442). f_p is homogeneous, f_p(a·x) = a·f_p(x), so the largest
    entry of each row is divided out before the power and no power over- or underflows as a whole.

    Args:
        x: Non-negative features, ``[B, H, N, D]``; a row of zeros stays zero.
        focusing_factor: The power p ≥ 1, any real number; 1 returns ``x``.
        norm: ``"joint"`` takes norms over all heads of a token, as the official weights need;
            ``"per_head"`` keeps the heads independent of each other.

    Returns:
        ``[B, H, N, D]`` in ``x.dtype``.

    Raises:
        ValueError: If ``focusing_factor`` is below 1, ``norm`` unknown or ``x`` not 4-D.

    Example:
        >>> x = torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2)
        >>> focused(x, 3.0)  # the norm stays 5, the larger entry gains
        tensor([[[[1.9435, 4.6068]]]])
    """
    check_focusing_factor(focusing_factor)
    check_norm(norm)
    if x.ndim != 4:
        raise ValueError(f"x must be [batch, heads, tokens, channels], got {shape_of(x)}")
    if focusing_factor == 1:
        return x
    dims = (1, 3) if norm == "joint" else (3,)
    # Any constant divisor gives the same f_p, so the gradient need not pass through the peak.
    peak = x.detach().amax(dims, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    unit = x / peak
    powered = power(unit, focusing_factor)
    shrinkage = torch.linalg.vector_norm(powered, dim=dims, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return powered * (torch.linalg.vector_norm(unit, dim=dims, keepdim=True) / shrinkage * peak)


def power(x: Tensor, exponent: float) -> Tensor:
    """Return ``x**exponent`` for ``x ≥ 0``: by products for whole exponents up to 64, else by ``pow``.

    Args:
        x: Any shape.
        exponent: At least 1.

    Returns:
        The shape and dtype of ``x``.

    Example:
        >>> power(torch.tensor([2.0]), 5), power(torch.tensor([4.0]), 1.5)
        (tensor([32.]), tensor([8.]))
    """
    whole = int(exponent)
    if whole != exponent or whole > _LARGEST_MULTIPLIED_POWER:
        return x.pow(exponent)
    odd: Tensor | None = None
    while whole > 3:  # square and multiply; PyTorch's pow by 2 and by 3 is one pass of products
        if whole & 1:
            odd = x if odd is None else odd * x
        whole >>= 1
        x = x.pow(2)
    even = x.pow(whole)
    return even if odd is None else odd * even
