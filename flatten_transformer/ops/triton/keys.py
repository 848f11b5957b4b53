"""Kernels over the keys: the context they make for the queries, and the gradients of keys and values."""

# B batch, H heads, M keys, D key channels, E value channels per head.

import triton
import triton.language as tl

from flatten_transformer.ops.triton.convolution import convolved_tile
from flatten_transformer.ops.triton.features import (
    TINY,
    exact_product,
    features_of_head,
    gradient_of_log_features,
    gradient_of_scores,
    heads_of_program,
    load_channels,
    load_scores,
    load_tile,
    norms_of_tokens,
    power,
    product,
    store_tile,
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
    numbers,
    context,
    key_sum,
    keys,
    heads,
    groups,
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
    """Sum ``f(k)ᵀ v`` and ``f(k)`` over one stretch of the keys of one sample (one head of it unless JOINT).

    First the norms of its tokens, over all heads, into ``numbers [groups, 2, M]``; then one head after the other, whose
    keys are still in the cache. It writes its own ``context [split, B, H, D, E]`` and ``key_sum [split, B, H, D]``.
    """
    program = tl.program_id(0)
    split, group = program % splits, program // splits
    batch, first, last = heads_of_program(group, heads, JOINT)
    begin = split * split_size
    end = tl.minimum(begin + split_size, keys)
    batches = groups if JOINT else groups // heads
    peaks = numbers + group.to(tl.int64) * 2 * keys
    scales = peaks + keys

    for start in range(begin, end, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        inside = rows < end
        peak, unit_square, power_square = norms_of_tokens(
            key, key_strides, encoding, encoding_strides, temperature, batch, first, last, rows, inside, eps, exponent,
            D, PAD_D, BLOCK, WHOLE,
        )  # fmt: skip
        share = share_of_keys(weights, batch, rows, inside, keys)
        tl.store(peaks + rows, peak, mask=inside)
        tl.store(scales + rows, share * peak * tl.sqrt(unit_square / power_square), mask=inside)
    tl.debug_barrier()  # what other threads of this program wrote is read below

    for head in range(first, last):
        inverse_temperature = temperature_of(temperature, head, D, PAD_D)
        head_value = value + batch * value_strides[0] + head * value_strides[1]
        sums = tl.zeros([PAD_D, PAD_E], tl.float32)
        plain_sums = tl.zeros([PAD_D], tl.float32)
        for start in range(begin, end, BLOCK):
            rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
            inside = rows < end
            scores = load_scores(key, key_strides, encoding, encoding_strides, batch, head, rows, inside, D, PAD_D)
            own, _, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
            peak = tl.load(peaks + rows, mask=inside, other=1.0)
            gain = tl.load(scales + rows, mask=inside, other=0.0) * power(own / peak, exponent, WHOLE)
            largest = tl.maximum(tl.max(gain, axis=0), TINY)
            tile = load_tile(head_value, rows, inside, value_strides[2], E, PAD_E)
            # at most 1, so half precision holds it; both sums take the same rounded features
            features = (powered * (gain / largest)[:, None]).to(tile.dtype)
            sums += largest * product(tl.trans(features), tile)
            plain_sums += largest * tl.sum(features.to(tl.float32), axis=0)
        at = (split.to(tl.int64) * batches + batch) * heads + head
        channels = tl.arange(0, PAD_D)
        store_tile(context + at * (D * E), sums, channels, channels < D, E, E, PAD_E)
        tl.store(key_sum + at * D + channels, plain_sums, mask=channels < D)


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
    key_sum,
    of_means,
    of_shares,
    grad,
    grad_strides,
    conv_weight,
    of_key,
    of_key_strides,
    of_value,
    of_value_strides,
    of_temperature,
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
    WHOLE: tl.constexpr,
    JOINT: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
):
    """Write the gradients of one block of keys and values, and its part of the temperature's, ``[B · blocks, H, D]``.

    ``of_means [B, H, D, E]`` and ``of_shares [B, H, D]`` come from the queries: see :func:`context_backward_kernel`.
    """
    program = tl.program_id(0)
    block, group = program % blocks, program // blocks
    batch, first, last = heads_of_program(group, heads, JOINT)
    rows = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = rows < keys
    peak, unit_square, power_square = norms_of_tokens(
        key, key_strides, encoding, encoding_strides, temperature, batch, first, last, rows, inside, eps, exponent,
        D, PAD_D, BLOCK, WHOLE,
    )  # fmt: skip
    scale = share_of_keys(weights, batch, rows, inside, keys) * peak * tl.sqrt(unit_square / power_square)

    total = tl.zeros([BLOCK], tl.float32)
    for head in range(first, last):
        inverse_temperature = temperature_of(temperature, head, D, PAD_D)
        scores = load_scores(key, key_strides, encoding, encoding_strides, batch, head, rows, inside, D, PAD_D)
        own, _, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
        tile = load_tile(value + batch * value_strides[0] + head * value_strides[1], rows, inside, value_strides[2], E, PAD_E)
        gain = scale * power(own / peak, exponent, WHOLE)
        products, _, _, _ = _products(powered, gain, tile, key_sum, of_means, of_shares, batch * heads + head, D, E, PAD_D, PAD_E)
        total += tl.sum(products, axis=1)

    for head in range(first, last):
        inverse_temperature = temperature_of(temperature, head, D, PAD_D)
        scores = load_scores(key, key_strides, encoding, encoding_strides, batch, head, rows, inside, D, PAD_D)
        own, unit, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
        tile = load_tile(value + batch * value_strides[0] + head * value_strides[1], rows, inside, value_strides[2], E, PAD_E)
        ratio = own / peak
        power_ratio = power(ratio, exponent, WHOLE)
        products, shares, means, size = _products(
            powered, scale * power_ratio, tile, key_sum, of_means, of_shares, batch * heads + head, D, E, PAD_D, PAD_E
        )
        log_gradient = gradient_of_log_features(
            products, total, unit, powered, ratio, power_ratio, unit_square, power_square, exponent
        )
        store_tile(
            of_key + batch * of_key_strides[0] + head * of_key_strides[1],
            gradient_of_scores(scores, log_gradient, eps), rows, inside, of_key_strides[2], D, PAD_D,
        )  # fmt: skip
        if temperature is not None:
            channels = tl.arange(0, PAD_D)
            part = of_temperature + ((batch * blocks + block) * heads + head) * D + channels
            tl.store(part, -tl.sum(log_gradient, axis=0) * inverse_temperature, mask=channels < D)

        shares = shares * size[None, :]
        largest = tl.maximum(tl.max(shares, axis=1), TINY)
        of_tile = product(shares / largest[:, None], means.to(tile.dtype)) * largest[:, None]
        if conv_weight is not None:
            of_tile += convolved_tile(
                grad + batch * grad_strides[0] + head * grad_strides[1], conv_weight, rows, inside, grad_strides[2],
                prefix, height, width, -1, KERNEL_HEIGHT, KERNEL_WIDTH, E, PAD_E, BLOCK,
            )  # fmt: skip
        store_tile(
            of_value + batch * of_value_strides[0] + head * of_value_strides[1],
            of_tile, rows, inside, of_value_strides[2], E, PAD_E,
        )  # fmt: skip


@triton.jit
def _products(
    powered,
    gain,
    tile,
    key_sum,
    of_means,
    of_shares,
    at,
    D: tl.constexpr,
    E: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_E: tl.constexpr,
):
    """Return ``f · df``, each key's share of a channel's mean, and that mean's gradient as a direction and its size."""
    channels = tl.arange(0, PAD_D)
    sums = load_channels(key_sum + at * D, D, PAD_D)
    shares = powered * gain[:, None] * tl.where(sums > TINY, 1.0 / tl.maximum(sums, TINY), 0.0)[None, :]
    means = load_tile(of_means + at * (D * E), channels, channels < D, E, E, PAD_E)
    size = tl.maximum(tl.max(tl.abs(means), axis=1), TINY)
    means = means / size[:, None]  # at most 1, whatever the scale of the loss
    pull = exact_product(tile, means) * size[None, :] - load_channels(of_shares + at * D, D, PAD_D)[None, :]
    return shares * pull, shares, means, size
