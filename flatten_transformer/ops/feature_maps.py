"""Feature maps φ of linear attention: small pure functions from scores to non-negative features."""

# B batch, H heads, N tokens, D channels per head.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flatten_transformer.ops.checks import Norm, check_focusing_factor, check_norm, shape_of

LARGEST_MULTIPLIED_POWER = 64  # above it, six or more products: pow is as fast and as accurate


def is_multiplied(exponent: float) -> bool:
    """Return whether a power is computed by products: whole exponents up to 64, on every backend."""
    return exponent <= LARGEST_MULTIPLIED_POWER and int(exponent) == exponent


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
    powered, size, ratio = split_focused(x, focusing_factor, norm=norm)
    return powered * (size * ratio)


class Factors(NamedTuple):
    """Factors of a focused feature; only ``size``, which needs no gradient, may have any magnitude."""

    powered: Tensor  # [B, H, N, D], between 0 and 1
    size: Tensor  # [B, H, N, 1], constant
    ratio: Tensor  # [B, 1 or H, N, 1], ‖x‖ / ‖x**p‖ where the largest entry is 1


def split_focused(x: Tensor, focusing_factor: float, *, norm: Norm, scale: float = 1.0) -> Factors:
    """Return the factors of :func:`focused` of ``scale · x``.

    In each head the largest entry is divided out before the power, so that it is 1 whatever the other heads hold.

    Args:
        x: Non-negative features, ``[B, H, N, D]``.
        focusing_factor: The power p ≥ 1.
        norm: See :func:`focused`.
        scale: A positive number.

    Example:
        >>> split_focused(torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2), 2.0, norm="per_head")
        Factors(powered=tensor([[[[0.5625, 1.0000]]]]), size=tensor([[[[4.]]]]), ratio=tensor([[[[1.0895]]]]))
    """
    tiny = torch.finfo(x.dtype).tiny
    # Any constant divisor gives the same f_p, so the gradient need not pass through the peaks.
    own = x.detach().amax(3, keepdim=True).clamp_min(tiny)
    unit = x / own
    if focusing_factor == 1:
        return Factors(unit, own * scale, torch.ones_like(own))
    powered = power(unit, focusing_factor)
    norms = [torch.linalg.vector_norm(part, dim=3, keepdim=True) for part in (unit, powered)]
    size = own * scale
    if norm == "joint":
        peak = own.amax(1, keepdim=True)
        share = own / peak
        power_share = power(share, focusing_factor)
        norms = [
            torch.linalg.vector_norm(part * of_head, dim=1, keepdim=True)
            for part, of_head in zip(norms, (share, power_share), strict=True)
        ]
        size = peak * scale * power_share
    return Factors(powered, size, norms[0] / norms[1].clamp_min(tiny))


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
    if not is_multiplied(exponent):
        return x.pow(exponent)
    whole = int(exponent)
    odd: Tensor | None = None
    while whole > 3:  # square and multiply; PyTorch's pow by 2 and by 3 is one pass of products
        if whole & 1:
            odd = x if odd is None else odd * x
        whole >>= 1
        x = x.pow(2)
    even = x.pow(whole)
    return even if odd is None else odd * even
