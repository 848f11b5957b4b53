"""Kernels of the norms of tokens, and of the means over their stretches."""

# B batch, H heads, T tokens (N queries or M keys), D key channels, E value channels per head.

import triton
import triton.language as tl

from flatten_transformer.ops.triton.features import (
    TINY,
    features_of_head,
    load_scores,
    power,
    store_tile,
    temperature_of,
)


@triton.jit
def norms_kernel(
    query,
    query_strides,
    key,
    key_strides,
    encoding,
    encoding_strides,
    temperature,
    norms,
    queries,
    keys,
    heads,
    query_blocks,
    key_blocks,
    query_programs,
    eps,
    exponent,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    JOINT: tl.constexpr,
):
    """Write the norms of queries and keys that :func:`load_norms` reads, ``norms [groups, 4, N + M]``.

    One program for a block of tokens of a group: of a sample if the norm is joint, else of one head of it.
    """
    program = tl.program_id(0)
    if program < query_programs:
        _write_norms(
            query, query_strides, None, None, temperature, norms, program // query_blocks, program % query_blocks, queries,
            queries + keys, heads, eps, exponent, D, PAD_D, BLOCK, WHOLE, JOINT,
        )  # fmt: skip
    else:
        program -= query_programs
        _write_norms(
            key, key_strides, encoding, encoding_strides, temperature, norms + queries, program // key_blocks,
            program % key_blocks, keys, queries + keys, heads, eps, exponent, D, PAD_D, BLOCK, WHOLE, JOINT,
        )  # fmt: skip


@triton.jit
def _write_norms(
    x,
    strides,
    encoding,
    encoding_strides,
    temperature,
    norms,
    group,
    block,
    tokens,
    total,
    heads,
    eps,
    exponent,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    JOINT: tl.constexpr,
):
    """Write norms in one pass: as the peak grows from head to head, earlier sums are rescaled, and nothing overflows."""
    rows = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = rows < tokens
    peak = tl.zeros([BLOCK], tl.float32)
    unit_square = tl.zeros([BLOCK], tl.float32)
    power_square = tl.zeros([BLOCK], tl.float32)
    group = group.to(tl.int64)
    if JOINT:
        batch, first, last = group, group * 0, group * 0 + heads
    else:
        batch, first, last = group // heads, group % heads, group % heads + 1
    for head in range(first, last):
        scores = load_scores(x, strides, encoding, encoding_strides, batch, head, rows, inside, D, PAD_D)
        own, _, unit, powered = features_of_head(scores, temperature_of(temperature, head, D, PAD_D), eps, exponent, WHOLE)
        top = tl.maximum(peak, own)
        inverse = 1.0 / top
        before, now = peak * inverse, own * inverse
        unit_square = unit_square * before * before + tl.sum(unit * unit, axis=1) * now * now
        before, now = power(before, exponent, WHOLE), power(now, exponent, WHOLE)
        power_square = power_square * before * before + tl.sum(powered * powered, axis=1) * now * now
        peak = top
    at = norms + group * 4 * total + rows
    tl.store(at, 1.0 / peak, mask=inside)
    tl.store(at + total, peak * tl.sqrt(unit_square / power_square), mask=inside)
    tl.store(at + 2 * total, 1.0 / unit_square, mask=inside)
    tl.store(at + 3 * total, 1.0 / power_square, mask=inside)


@triton.jit
def means_kernel(
    products,
    shares,
    means,
    sums,
    row_sizes,
    splits,
    D: tl.constexpr,
    E: tl.constexpr,
    PAD_E: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add up ``products [splits, samples, D, E]`` and ``shares [splits, samples, D]``, in a fixed order, and divide.

    One program for ROWS channels of one head of one sample. The sum of the shares goes to ``sums [samples, D]``; by it the
    products are divided, or, if there are ``row_sizes [samples, D]``, by each row's largest, which goes there. ``means
    [samples, D, PARTS, E]`` are rounded to their dtype; with two PARTS the second holds the rounding residuals.
    """
    at, samples = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channels = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there = channels < D
    columns = tl.arange(0, PAD_E)
    mask = there[:, None] & (columns < E)[None, :]
    total = tl.zeros([ROWS, PAD_E], tl.float32)
    share = tl.zeros([ROWS], tl.float32)
    for split in range(splits):
        part = (at + split * samples) * D
        total += tl.load(products + (part + channels[:, None]) * E + columns[None, :], mask=mask, other=0.0)
        share += tl.load(shares + part + channels, mask=there, other=0.0)
    tl.store(sums + at * D + channels, share, mask=there)
    divisor = share
    if row_sizes is not None:
        divisor = tl.maximum(tl.max(tl.abs(total), axis=1), TINY)
        tl.store(row_sizes + at * D + channels, divisor, mask=there)
    total *= tl.where(divisor >= TINY, 1.0 / tl.maximum(divisor, TINY), 0.0)[:, None]
    row = means + at * (D * E * PARTS)
    store_tile(row, total, channels, there, E * PARTS, E, PAD_E)
    if PARTS == 2:
        rounded = total.to(means.dtype.element_ty).to(tl.float32)
        store_tile(row + E, total - rounded, channels, there, E * PARTS, E, PAD_E)
