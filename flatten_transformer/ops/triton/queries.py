"""Kernels over the queries: the output, and the gradients of queries and of the context."""

# B batch, H heads, N queries, D key channels, E value channels per head.

import triton
import triton.language as tl

from flatten_transformer.ops.triton.convolution import convolved_tile, tokens_of_block
from flatten_transformer.ops.triton.features import (
    SHIFT,
    TINY,
    exact_column_sums,
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
def attend_to_channels(powered, sums, gain, eps):
    """Return how a query divides its attention among the channels, ``[BLOCK, PAD_D]``, 1 / normaliser, eps over gain."""
    weighted = powered * sums[None, :]
    epsilon = eps * SHIFT / tl.maximum(gain, TINY) * SHIFT
    total = tl.sum(weighted, axis=1) + epsilon
    inverse = tl.where(total < TINY, 0.0, 1.0 / total)  # underflow: it attends to nothing
    return weighted * inverse[:, None], inverse, epsilon


@triton.jit
def load_sums(key_sum, at, D: tl.constexpr, PADDED: tl.constexpr):
    """Return the sums of the keys' channels; one without any weight is zeroed, as its mean is."""
    sums = load_channels(key_sum + at * D, D, PADDED)
    return tl.where(sums > TINY, sums, 0.0)


@triton.jit
def queries_forward_kernel(
    query,
    query_strides,
    temperature,
    norms,
    norms_total,
    value,
    value_strides,
    means,
    key_sum,
    conv_weight,
    conv_bias,
    out,
    out_strides,
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
    """Write the output of one block of queries of one head, the convolution of the values included."""
    block, batch, head = place_of_program(blocks, heads)
    at = batch * heads + head
    rows, inside = tokens_of_block(block, prefix, height, width, BLOCK)
    inverse_peak, gain, _, _ = load_norms(norms, batch if JOINT else at, rows, inside, norms_total)
    scores = load_scores(query, query_strides, None, None, batch, head, rows, inside, D, PAD_D)
    own, _, _, powered = features_of_head(scores, temperature_of(temperature, head, D, PAD_D), eps, exponent, WHOLE)
    sums = load_sums(key_sum, at, D, PAD_D)
    attention, _, _ = attend_to_channels(powered, sums, gain * power(own * inverse_peak, exponent, WHOLE), eps)
    rounded, _ = load_means(means, at, tl.arange(0, PAD_D), D, E, PAD_E, PARTS)
    tile = product(attention, rounded)
    if conv_weight is not None:
        tile += convolved_tile(
            value + batch * value_strides[0] + head * value_strides[1], conv_weight, block, value_strides[2],
            prefix, height, width, 1, KERNEL_HEIGHT, KERNEL_WIDTH, E, PAD_E, BLOCK,
        )  # fmt: skip
        if conv_bias is not None:
            tile += tl.where((rows >= prefix)[:, None], load_channels(conv_bias, E, PAD_E)[None, :], 0.0)
    store_tile(out + batch * out_strides[0] + head * out_strides[1], tile, rows, inside, out_strides[2], E, PAD_E)


@triton.jit
def context_backward_kernel(
    query,
    query_strides,
    temperature,
    norms,
    norms_total,
    means,
    key_sum,
    grad,
    grad_strides,
    of_means,
    of_shares,
    numbers,
    queries,
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
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    JOINT: tl.constexpr,
):
    """Sum the gradients of the channels over one stretch of the queries of one head.

    ``of_means [split, B, H, D, E]`` is the gradient of the means of the values, ``of_shares [split, B, H, D]`` what each
    channel's sum loses by it. ``numbers [B, H, 3, N]`` is the input of :func:`queries_backward_kernel` for each query: the sum
    of ``f · df``, nonzero only by eps, ``grad · out`` without the convolution, and 1 / normaliser.
    """
    split, batch, head = place_of_program(splits, heads)
    at = batch * heads + head
    begin = split * split_size
    end = tl.minimum(begin + split_size, queries)
    inverse_temperature = temperature_of(temperature, head, D, PAD_D)
    sums = load_sums(key_sum, at, D, PAD_D)
    channels = tl.arange(0, PAD_D)
    rounded, rest = load_means(means, at, channels, D, E, PAD_E, PARTS)
    of_head = tl.zeros([PAD_D, PAD_E], tl.float32)
    shares = tl.zeros([PAD_D], tl.float32)
    for start in range(begin, end, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        inside = rows < end
        inverse_peak, gain, _, _ = load_norms(norms, batch if JOINT else at, rows, inside, norms_total)
        scores = load_scores(query, query_strides, None, None, batch, head, rows, inside, D, PAD_D)
        own, _, _, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
        gain = gain * power(own * inverse_peak, exponent, WHOLE)
        attention, inverse, epsilon = attend_to_channels(powered, sums, gain, eps)
        of_out = load_tile(grad + batch * grad_strides[0] + head * grad_strides[1], rows, inside, grad_strides[2], E, PAD_E)
        agreement = tl.sum(attention * exact_product(of_out, rounded, rest, PARTS), axis=1)
        of_row = numbers + at * 3 * queries + rows
        tl.store(of_row, agreement * epsilon * inverse, mask=inside)
        tl.store(of_row + queries, agreement, mask=inside)
        tl.store(of_row + 2 * queries, inverse, mask=inside)
        attention = attention.to(of_out.dtype)  # beyond the last query it meets zeros
        of_head += product(tl.trans(attention), of_out)
        shares += exact_column_sums(attention, agreement)
    out = split.to(tl.int64) * samples + at
    store_tile(of_means + out * (D * E), of_head, channels, channels < D, E, E, PAD_E)
    tl.store(of_shares + out * D + channels, shares, mask=channels < D)


@triton.jit
def queries_backward_kernel(
    query,
    query_strides,
    temperature,
    norms,
    norms_total,
    means,
    key_sum,
    grad,
    grad_strides,
    numbers,
    of_query,
    of_query_strides,
    of_temperature,
    queries,
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
    """Write the gradient of one block of queries of one head, and its part of the temperature's, ``[B · blocks, H, D]``."""
    block, batch, head = place_of_program(blocks, heads)
    at = batch * heads + head
    rows = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = rows < queries
    inverse_peak, _, inverse_unit, inverse_power = load_norms(norms, batch if JOINT else at, rows, inside, norms_total)
    total = sum_over_heads(numbers, 3 * queries, batch, head, heads, rows, inside, JOINT)
    of_row = numbers + at * 3 * queries + rows
    agreement = tl.load(of_row + queries, mask=inside, other=0.0)
    inverse = tl.load(of_row + 2 * queries, mask=inside, other=0.0)

    of_out = load_tile(grad + batch * grad_strides[0] + head * grad_strides[1], rows, inside, grad_strides[2], E, PAD_E)
    rounded, rest = load_means(means, at, tl.arange(0, PAD_D), D, E, PAD_E, PARTS)
    pull = exact_product(of_out, rounded, rest, PARTS)
    of_powered = (pull - agreement[:, None]) * inverse[:, None] * load_sums(key_sum, at, D, PAD_D)[None, :]

    inverse_temperature = temperature_of(temperature, head, D, PAD_D)
    scores = load_scores(query, query_strides, None, None, batch, head, rows, inside, D, PAD_D)
    own, inverse_own, unit, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
    ratio = own * inverse_peak
    gradient = gradient_over_unit(
        of_powered, total, unit, powered, ratio, power(ratio, exponent, WHOLE), inverse_unit, inverse_power, exponent, WHOLE
    )
    store_gradients(
        of_query, of_query_strides, of_temperature, gradient, scores, unit, inverse_own, inverse_temperature,
        batch, head, (batch * blocks + block) * heads + head, rows, inside, D, PAD_D,
    )  # fmt: skip
