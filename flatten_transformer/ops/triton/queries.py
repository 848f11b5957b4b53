"""Kernels over the queries: the output, and the gradients of queries and of the context."""

# B batch, H heads, N queries, D key channels, E value channels per head.

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
def load_means(context, sums, at, D: tl.constexpr, E: tl.constexpr, PAD_D: tl.constexpr, PAD_E: tl.constexpr):
    """Return the mean of the values as each channel of the keys weights them, ``[PAD_D, PAD_E]``: in range as values are."""
    channels = tl.arange(0, PAD_D)
    tile = load_tile(context + at * (D * E), channels, channels < D, E, E, PAD_E)
    return tile * tl.where(sums > TINY, 1.0 / tl.maximum(sums, TINY), 0.0)[:, None]


@triton.jit
def attend_to_channels(powered, sums, gain, eps):
    """Return how a query divides its attention among the channels, ``[BLOCK, PAD_D]``, the normaliser, eps over gain."""
    weighted = powered * tl.where(sums > TINY, sums, 0.0)[None, :]
    epsilon = eps / tl.maximum(gain, TINY)
    normaliser = tl.sum(weighted, axis=1) + epsilon
    return weighted * (1.0 / normaliser)[:, None], normaliser, epsilon


@triton.jit
def queries_forward_kernel(
    query,
    query_strides,
    value,
    value_strides,
    temperature,
    context,
    key_sum,
    conv_weight,
    conv_bias,
    out,
    out_strides,
    queries,
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
    """Write the output of one block of queries, the convolution of the values included, head after head."""
    program = tl.program_id(0)
    block, group = program % blocks, program // blocks
    batch, first, last = heads_of_program(group, heads, JOINT)
    rows = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = rows < queries
    peak, unit_square, power_square = norms_of_tokens(
        query, query_strides, None, None, temperature, batch, first, last, rows, inside, eps, exponent,
        D, PAD_D, BLOCK, WHOLE,
    )  # fmt: skip
    scale = peak * tl.sqrt(unit_square / power_square)

    for head in range(first, last):
        at = batch * heads + head
        scores = load_scores(query, query_strides, None, None, batch, head, rows, inside, D, PAD_D)
        own, _, powered = features_of_head(scores, temperature_of(temperature, head, D, PAD_D), eps, exponent, WHOLE)
        sums = load_channels(key_sum + at * D, D, PAD_D)
        attention, _, _ = attend_to_channels(powered, sums, scale * power(own / peak, exponent, WHOLE), eps)
        means = load_means(context, sums, at, D, E, PAD_D, PAD_E)
        tile = product(attention, means.to(value.dtype.element_ty))
        if conv_weight is not None:
            tile += convolved_tile(
                value + batch * value_strides[0] + head * value_strides[1], conv_weight, rows, inside, value_strides[2],
                prefix, height, width, 1, KERNEL_HEIGHT, KERNEL_WIDTH, E, PAD_E, BLOCK,
            )  # fmt: skip
            if conv_bias is not None:
                tile += tl.where((rows >= prefix)[:, None], load_channels(conv_bias, E, PAD_E)[None, :], 0.0)
        store_tile(out + batch * out_strides[0] + head * out_strides[1], tile, rows, inside, out_strides[2], E, PAD_E)


@triton.jit
def queries_backward_kernel(
    query,
    query_strides,
    temperature,
    context,
    key_sum,
    grad,
    grad_strides,
    of_query,
    of_query_strides,
    of_temperature,
    numbers,
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
    WHOLE: tl.constexpr,
    JOINT: tl.constexpr,
):
    """Write the gradients of one block of queries and its part of the temperature's, ``[B · blocks, H, D]``.

    ``numbers [B, H, 2, N]`` takes each query's normaliser and ``grad · out``, for :func:`context_backward_kernel`.
    """
    program = tl.program_id(0)
    block, group = program % blocks, program // blocks
    batch, first, last = heads_of_program(group, heads, JOINT)
    rows = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = rows < queries
    peak, unit_square, power_square = norms_of_tokens(
        query, query_strides, None, None, temperature, batch, first, last, rows, inside, eps, exponent,
        D, PAD_D, BLOCK, WHOLE,
    )  # fmt: skip
    scale = peak * tl.sqrt(unit_square / power_square)

    total = tl.zeros([BLOCK], tl.float32)
    for head in range(first, last):
        at = batch * heads + head
        scores = load_scores(query, query_strides, None, None, batch, head, rows, inside, D, PAD_D)
        own, _, powered = features_of_head(scores, temperature_of(temperature, head, D, PAD_D), eps, exponent, WHOLE)
        sums = load_channels(key_sum + at * D, D, PAD_D)
        gain = scale * power(own / peak, exponent, WHOLE)
        attention, normaliser, epsilon = attend_to_channels(powered, sums, gain, eps)
        of_out = load_tile(grad + batch * grad_strides[0] + head * grad_strides[1], rows, inside, grad_strides[2], E, PAD_E)
        pull = exact_product(of_out, load_means(context, sums, at, D, E, PAD_D, PAD_E))
        agreement = tl.sum(attention * pull, axis=1)
        total += agreement * (epsilon / normaliser)  # the sum of f · df over the channels, as only eps leaves any
        tl.store(numbers + at * 2 * queries + rows, normaliser, mask=inside)
        tl.store(numbers + (at * 2 + 1) * queries + rows, agreement, mask=inside)

    for head in range(first, last):
        at = batch * heads + head
        inverse_temperature = temperature_of(temperature, head, D, PAD_D)
        scores = load_scores(query, query_strides, None, None, batch, head, rows, inside, D, PAD_D)
        own, unit, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
        sums = load_channels(key_sum + at * D, D, PAD_D)
        ratio = own / peak
        power_ratio = power(ratio, exponent, WHOLE)
        attention, _, _ = attend_to_channels(powered, sums, scale * power_ratio, eps)
        of_out = load_tile(grad + batch * grad_strides[0] + head * grad_strides[1], rows, inside, grad_strides[2], E, PAD_E)
        pull = exact_product(of_out, load_means(context, sums, at, D, E, PAD_D, PAD_E))
        products = attention * (pull - tl.sum(attention * pull, axis=1)[:, None])
        log_gradient = gradient_of_log_features(
            products, total, unit, powered, ratio, power_ratio, unit_square, power_square, exponent
        )
        store_tile(
            of_query + batch * of_query_strides[0] + head * of_query_strides[1],
            gradient_of_scores(scores, log_gradient, eps), rows, inside, of_query_strides[2], D, PAD_D,
        )  # fmt: skip
        if temperature is not None:
            channels = tl.arange(0, PAD_D)
            part = of_temperature + ((batch * blocks + block) * heads + head) * D + channels
            tl.store(part, -tl.sum(log_gradient, axis=0) * inverse_temperature, mask=channels < D)


@triton.jit
def context_backward_kernel(
    query,
    query_strides,
    temperature,
    key_sum,
    grad,
    grad_strides,
    numbers,
    of_means,
    of_shares,
    queries,
    heads,
    splits,
    split_size,
    samples,
    eps,
    exponent,
    D: tl.constexpr,
    E: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_E: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Sum over one stretch of the queries of one head what its attention sends back to the channels.

    ``of_means [split, B, H, D, E]`` is the gradient of the means of the values, ``of_shares [split, B, H, D]`` what each
    channel's sum loses by it.
    """
    program = tl.program_id(0)
    split, at = program % splits, (program // splits).to(tl.int64)
    batch, head = at // heads, at % heads
    begin = split * split_size
    end = tl.minimum(begin + split_size, queries)
    inverse_temperature = temperature_of(temperature, head, D, PAD_D)
    sums = load_channels(key_sum + at * D, D, PAD_D)
    sums = tl.where(sums > TINY, sums, 0.0)
    normalisers = numbers + at * 2 * queries
    agreements = normalisers + queries
    means = tl.zeros([PAD_D, PAD_E], tl.float32)
    shares = tl.zeros([PAD_D], tl.float32)
    for start in range(begin, end, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        inside = rows < end
        scores = load_scores(query, query_strides, None, None, batch, head, rows, inside, D, PAD_D)
        _, _, powered = features_of_head(scores, inverse_temperature, eps, exponent, WHOLE)
        normaliser = tl.load(normalisers + rows, mask=inside, other=float("inf"))
        of_out = load_tile(grad + batch * grad_strides[0] + head * grad_strides[1], rows, inside, grad_strides[2], E, PAD_E)
        attention = (powered * sums[None, :] * (1.0 / normaliser)[:, None]).to(of_out.dtype)
        agreement = tl.load(agreements + rows, mask=inside, other=0.0)
        means += product(tl.trans(attention), of_out)
        shares += tl.sum(attention.to(tl.float32) * agreement[:, None], axis=0)
    out = split.to(tl.int64) * samples * heads + at
    channels = tl.arange(0, PAD_D)
    store_tile(of_means + out * (D * E), means, channels, channels < D, E, E, PAD_E)
    tl.store(of_shares + out * D + channels, shares, mask=channels < D)
