"""Kernels over the keys: the context they make for the queries, and the gradients of keys and values."""

# B batch, H heads, M keys, D key channels, E value channels per head.

import triton
import triton.language as tl

from flatten_transformer.ops.triton.convolution import convolved_tile, tokens_of_block
from flatten_transformer.ops.triton.features import (
    TINY,
    exact_product,
    features_of_head,
    gradient_over_unit,
    load_channels,
    load_means,
    load_norms,
    load_scores,
    load_tile,
    place_of_program,
    power,
    product,
    store_gradients,
    store_tile,
    sum_over_heads,
    temperature_of,
)


@triton.jit
def share_of_keys(weights, batch, rows, inside, keys):
    """Return the share of each key in the mean, ``[BLOCK]``: from ``weights [B, M]``, or 1/M."""
    if weights is None:
        share = tl.where(inside, 1.0 / keys, 0.0)
    else:
        share = tl.load(weights + batch * keys + rows, mask=inside, other=0.0)
    return share


@triton.jit
def keys_forward_kernel(
    key,
    key_strides,
    value,
    value_strides,
    weights,
    encoding,
    encoding_strides,
    temperature,
    norms,
    norms_total,
    context,
    key_sum,
    keys,
    heads,
    samples,
    splits,
    split_size,
    eps,
    exponent,
    D: tl.constexpr,
    E: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_E: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    JOINT: tl.constexpr,
):
    """Sum ``f(k)ᵀ v`` and ``f(k)`` over one stretch of the keys of one head.

    It writes its own ``context [split, B, H, D, E]`` and ``key_sum [split, B, H, D]``.
    """
    split, batch, head = place_of_program(splits, heads)
    at = batch * heads + head
    begin = split * split_size
    end = tl.minimum(begin + split_size, keys)
    inverse_temperature = temperature_of(temperature, head, D, PAD_D)
    head_value = value + batch * value_strides[0] + head * value_strides[1]
    sums = tl.zeros([PAD_D, PAD_E], tl.float32)
    plain_sums = tl.zeros([PAD_D], tl.float32)
    ones = tl.full([BLOCK, 16], 1.0, value.dtype.element_ty)
    for start in range(begin, end, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        inside = rows < end
        inverse_peak, scale, _, _ = load_norms(norms, batch if JOINT else at, rows, inside, norms_total)
        scores = load_scores(key, key_strides, encoding, encoding_strides, batch, head, rows, inside, D, PAD_D)
        own, _, _, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
        gain = share_of_keys(weights, batch, rows, inside, keys) * scale * power(own * inverse_peak, exponent, WHOLE)
        tile = load_tile(head_value, rows, inside, value_strides[2], E, PAD_E)
        if tile.dtype == tl.float16:  # at most 1, so that it holds the features
            largest = tl.maximum(tl.max(gain, axis=0), TINY)
            features = (powered * (gain * (1.0 / largest))[:, None]).to(tile.dtype)
            sums += largest * product(tl.trans(features), tile)
            plain_sums += largest * tl.sum(features.to(tl.float32), axis=0)
        else:  # both sums take the same rounded features
            features = (powered * gain[:, None]).to(tile.dtype)
            sums += product(tl.trans(features), tile)
            plain_sums += tl.max(product(tl.trans(features), ones), axis=1)  # all columns are alike
    out = split.to(tl.int64) * samples + at
    channels = tl.arange(0, PAD_D)
    store_tile(context + out * (D * E), sums, channels, channels < D, E, E, PAD_E)
    tl.store(key_sum + out * D + channels, plain_sums, mask=channels < D)


@triton.jit
def values_backward_kernel(
    key,
    key_strides,
    value,
    value_strides,
    weights,
    encoding,
    encoding_strides,
    temperature,
    norms,
    norms_total,
    key_sum,
    pulls,
    sizes,
    shares,
    grad,
    grad_strides,
    conv_weight,
    totals,
    of_value,
    of_value_strides,
    keys,
    heads,
    blocks,
    prefix,
    height,
    width,
    eps,
    exponent,
    D: tl.constexpr,
    E: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_E: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    JOINT: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
):
    """Write the gradient of one block of values of one head, and each key's sum of ``f · df``, ``totals [B, H, M]``.

    ``pulls``, ``sizes`` and ``shares`` are the output of :func:`means_kernel` for the gradient of the means.
    """
    block, batch, head = place_of_program(blocks, heads)
    at = batch * heads + head
    rows, inside = tokens_of_block(block, prefix, height, width, BLOCK)
    inverse_peak, scale, _, _ = load_norms(norms, batch if JOINT else at, rows, inside, norms_total)
    scores = load_scores(key, key_strides, encoding, encoding_strides, batch, head, rows, inside, D, PAD_D)
    own, _, _, powered = features_of_head(scores, temperature_of(temperature, head, D, PAD_D), eps, exponent, WHOLE)
    gain = share_of_keys(weights, batch, rows, inside, keys) * scale * power(own * inverse_peak, exponent, WHOLE)
    tile = load_tile(value + batch * value_strides[0] + head * value_strides[1], rows, inside, value_strides[2], E, PAD_E)
    share, pull, rounded, size = _pulls(tile, key_sum, pulls, sizes, shares, at, D, E, PAD_D, PAD_E, PARTS)
    attention = powered * gain[:, None] * share[None, :]
    tl.store(totals + at * keys + rows, tl.sum(attention * pull, axis=1), mask=inside)

    attention = attention * size[None, :]
    largest = tl.maximum(tl.max(attention, axis=1), TINY)
    of_tile = product(attention * (1.0 / largest)[:, None], rounded) * largest[:, None]
    if conv_weight is not None:
        of_tile += convolved_tile(
            grad + batch * grad_strides[0] + head * grad_strides[1], conv_weight, block, grad_strides[2],
            prefix, height, width, -1, KERNEL_HEIGHT, KERNEL_WIDTH, E, PAD_E, BLOCK,
        )  # fmt: skip
    store_tile(
        of_value + batch * of_value_strides[0] + head * of_value_strides[1],
        of_tile, rows, inside, of_value_strides[2], E, PAD_E,
    )  # fmt: skip


@triton.jit
def keys_backward_kernel(
    key,
    key_strides,
    value,
    value_strides,
    weights,
    encoding,
    encoding_strides,
    temperature,
    norms,
    norms_total,
    key_sum,
    pulls,
    sizes,
    shares,
    totals,
    of_key,
    of_key_strides,
    of_temperature,
    keys,
    heads,
    blocks,
    eps,
    exponent,
    D: tl.constexpr,
    E: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_E: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    JOINT: tl.constexpr,
):
    """Write the gradient of one block of keys of one head, and its part of the temperature's, ``[B · blocks, H, D]``."""
    block, batch, head = place_of_program(blocks, heads)
    at = batch * heads + head
    rows = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = rows < keys
    inverse_peak, scale, inverse_unit, inverse_power = load_norms(norms, batch if JOINT else at, rows, inside, norms_total)
    scale *= share_of_keys(weights, batch, rows, inside, keys)
    total = sum_over_heads(totals, keys, batch, head, heads, rows, inside, JOINT)

    tile = load_tile(value + batch * value_strides[0] + head * value_strides[1], rows, inside, value_strides[2], E, PAD_E)
    share, pull, _, _ = _pulls(tile, key_sum, pulls, sizes, shares, at, D, E, PAD_D, PAD_E, PARTS)

    inverse_temperature = temperature_of(temperature, head, D, PAD_D)
    scores = load_scores(key, key_strides, encoding, encoding_strides, batch, head, rows, inside, D, PAD_D)
    own, inverse_own, unit, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
    ratio = own * inverse_peak
    power_ratio = power(ratio, exponent, WHOLE)
    of_powered = pull * share[None, :] * (scale * power_ratio)[:, None]
    gradient = gradient_over_unit(
        of_powered, total, unit, powered, ratio, power_ratio, inverse_unit, inverse_power, exponent, WHOLE
    )
    store_gradients(
        of_key, of_key_strides, of_temperature, gradient, scores, unit, inverse_own, inverse_temperature,
        batch, head, (batch * blocks + block) * heads + head, rows, inside, D, PAD_D,
    )  # fmt: skip


@triton.jit
def _pulls(
    tile,
    key_sum,
    pulls,
    sizes,
    shares,
    at,
    D: tl.constexpr,
    E: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_E: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Return 1 / the sum of each channel, how each key pulls at it, ``[BLOCK, PAD_D]``, its gradient as direction and size."""
    sums = load_channels(key_sum + at * D, D, PAD_D)
    share = tl.where(sums > TINY, 1.0 / tl.maximum(sums, TINY), 0.0)
    size = load_channels(sizes + at * D, D, PAD_D)
    rounded, rest = load_means(pulls, at, tl.arange(0, PAD_D), D, E, PAD_E, PARTS)
    pull = exact_product(tile, rounded, rest, PARTS) * size[None, :] - load_channels(shares + at * D, D, PAD_D)[None, :]
    return share, pull, rounded, size
