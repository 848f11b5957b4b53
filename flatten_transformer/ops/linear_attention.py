"""Linear attention in portable PyTorch: any device, export, torch.compile, every floating dtype."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatten_transformer.ops.checks import Arguments, check_attention, check_mask, check_positive
from flatten_transformer.ops.empty import attend_to_nothing, is_empty
from flatten_transformer.ops.feature_maps import Factors, split_focused
from flatten_transformer.ops.precision import shift, sum_dtype, without_autocast
from flatten_transformer.ops.rank_restoration import restore_rank
from flatten_transformer.ops.transforms import numbers_can_be_read


def attend(a: Arguments, attn_mask: Tensor | None) -> Tensor:
    """Attend by PyTorch operations: the backend ``"portable"``.

    Args:
        a: See :func:`flatten_transformer.focused_linear_attention`, which checks all of them.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``.
    """
    if a.temperature is not None and numbers_can_be_read(a.temperature):
        check_positive(a.temperature)
    dtype, scale = sum_dtype(a.query), shift(a.eps)
    q, k, v = a.query.to(dtype), a.key.to(dtype), a.value.to(dtype)
    if a.key_encoding is not None:
        k = k + a.key_encoding.to(dtype)
    with without_autocast(q.device.type):
        of_query, of_key = (_features(x, a, scale) for x in (q, k))
        features = of_key.powered * (of_key.size * of_key.ratio)
        # a query's own size cancels but for the eps, as does the scale
        eps = a.eps * scale / of_query.size.clamp_min(torch.finfo(dtype).tiny) * scale / of_query.ratio
        out = _mix(of_query.powered, features, v, attn_mask, eps)
        return add_convolution(out, v, a).to(a.query.dtype)


def add_convolution(out: Tensor, value: Tensor, a: Arguments) -> Tensor:
    """Add rank restoration, if there is a convolution, to all tokens but the prefix tokens.

    Args:
        out: ``[B, H, N, E]``.
        value: ``[B, H, N, E]``, in the same dtype.
        a: The convolution, in any dtype.

    Returns:
        ``[B, H, N, E]``.
    """
    if a.conv_weight is None:
        return out
    weight, bias = a.conv_weight.to(out.dtype), a.conv_bias
    tokens = math.prod(a.grid_size)
    prefix, tokens_of_grid = value.split([value.shape[2] - tokens, tokens], dim=2)
    restored = restore_rank(tokens_of_grid, weight, None if bias is None else bias.to(out.dtype), a.grid_size)
    return out + torch.cat([torch.zeros_like(prefix), restored], dim=2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Attend with non-negative features: ``q (kᵀ v) / (q · mean(k) + eps)``, sums scaled by 1/M.

    Eq. (4) of FLatten (arXiv 2308.00442) in the released form: the mean and 1/M keep sums in range.
    The cheaper order of the two products is taken, so neither time nor memory ever grows as N·M.

    Args:
        q: Query features, ``[B, H, N, D]``, non-negative.
        k: Key features, ``[B, H, M, D]``, non-negative.
        v: Values, ``[B, H, M, E]``.
        attn_mask: Boolean, ``[B, 1, 1, M]``; True where a key takes part. Masked keys and values never matter, not even NaN.
        eps: Added to the normaliser; dimensionless.

    Returns:
        ``[B, H, N, E]`` in ``q.dtype``; sums are kept in float32 (float64 for float64 input).

    Raises:
        ValueError: If the shapes do not fit; the message holds all three.

    Example:
        >>> q, k, v = torch.rand(3, 2, 4, 196, 32).unbind(0)
        >>> linear_attention(q, k, v).shape
        torch.Size([2, 4, 196, 32])
    """
    check_attention(q, k, v)
    check_mask(attn_mask, k)
    if attn_mask is not None:  # the keys are masked in _mix
        v = v.masked_fill(~attn_mask.transpose(2, 3), 0)
    if is_empty(q, k, v):
        return attend_to_nothing(q, k, v)
    dtype = sum_dtype(q)
    with without_autocast(q.device.type):
        return _mix(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask, eps).to(q.dtype)


def _mix(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, eps: float | Tensor) -> Tensor:
    """Return ``q (kᵀ v) / (q · mean(k) + eps)`` with one ``eps``, or one a query, ``[B, H, N, 1]``; masked values are zeros.

    Features of any size are divided by the largest sum of keys of their head: a constant, through which no gradient need pass.
    """
    kept: Tensor | int = k.shape[2]
    if attn_mask is not None:  # features of zeroed keys are not zero: φ adds eps, and an encoding may have been added
        kept = attn_mask.sum(dim=3, keepdim=True).clamp(min=1)  # [B, 1, 1, 1]
        k = k.masked_fill(~attn_mask.transpose(2, 3), 0)
    tiny = torch.finfo(q.dtype).tiny
    if _quadratic_is_cheaper(q.shape[2], k.shape[2], q.shape[3], v.shape[3]):
        largest = k.detach().amax((2, 3), keepdim=True).clamp_min(tiny)
        products = q @ (k / (kept * largest)).transpose(2, 3)  # [B, H, N, M], fewer elements than q, k and v have
        return products @ v / _normaliser(products.sum(dim=3, keepdim=True), eps / largest)
    mean = k.sum(dim=2).unsqueeze(3) / kept  # [B, H, D, 1]
    largest = mean.detach().amax(2, keepdim=True).clamp_min(tiny)
    context = k.transpose(2, 3) @ v / (kept * largest)  # [B, H, D, E]: small, so it is divided instead of k
    return q @ context / _normaliser(q @ (mean / largest), eps / largest)


def _normaliser(products: Tensor, eps: Tensor) -> Tensor:
    """Return the sum of a query's weights ``[B, H, N, 1]``, clamped: where it underflows, so does its dividend, to zero."""
    return (products + eps).clamp_min(1e-290 if products.dtype == torch.float64 else 1e-30)


def _quadratic_is_cheaper(queries: int, keys: int, key_channels: int, value_channels: int) -> bool:
    if torch.compiler.is_exporting():
        return False  # a branch on a size would pin it in the exported graph
    channels = key_channels + value_channels
    return queries * keys * channels < key_channels * value_channels * (queries + keys)


def _features(x: Tensor, a: Arguments, scale: float) -> Factors:
    """Return the factors of ``scale · φ(x)``, see :func:`split_focused`; NaN where a temperature is not positive."""
    x = torch.relu(x)
    if a.temperature is None:
        return split_focused(x + a.eps, a.focusing_factor, norm=a.norm, scale=scale)
    temperature = a.temperature.to(x.dtype)[:, None, :]
    inverse = torch.where(temperature > 0, temperature.new_full((), scale), torch.nan) / temperature
    x = torch.addcmul(a.eps * inverse, x, inverse)  # scale · (x + eps) / temperature in one pass
    return split_focused(x, a.focusing_factor, norm=a.norm)
