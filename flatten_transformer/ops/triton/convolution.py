"""The depthwise convolution of the values on a grid of tokens: inside other kernels, and the gradients of its kernels."""

# B batch, H heads, N tokens (prefix tokens, then the grid), E value channels per head, K = KERNEL_HEIGHT · KERNEL_WIDTH taps.

import triton
import triton.language as tl

from flatten_transformer.ops.triton.features import heads_of_program, load_tile


@triton.jit
def shifted_tile(
    pointer,
    rows,
    inside,
    stride,
    prefix,
    height,
    width,
    down,
    right,
    E: tl.constexpr,
    PAD_E: tl.constexpr,
):
    """Return for each token the row of the one ``down`` and ``right`` of it in the grid, zero where there is none."""
    position = (rows - prefix).to(tl.int32)
    to_row, to_column = position // width + down, position % width + right
    there = inside & (position >= 0) & (to_row >= 0) & (to_row < height) & (to_column >= 0) & (to_column < width)
    return load_tile(pointer, rows + (down * width + right), there, stride, E, PAD_E)


@triton.jit
def convolved_tile(
    pointer,
    weight,
    rows,
    inside,
    stride,
    prefix,
    height,
    width,
    SIGN: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    E: tl.constexpr,
    PAD_E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the convolution of a head with ``weight [E, K]`` (SIGN 1) or its transpose (SIGN -1), ``[BLOCK, PAD_E]``."""
    channels = tl.arange(0, PAD_E)
    result = tl.zeros([BLOCK, PAD_E], tl.float32)
    for row in range(KERNEL_HEIGHT):  # not unrolled: 25 tiles in flight would not fit into the registers
        down = SIGN * (row - KERNEL_HEIGHT // 2)
        for column in tl.static_range(KERNEL_WIDTH):
            right = SIGN * (column - KERNEL_WIDTH // 2)
            tile = shifted_tile(pointer, rows, inside, stride, prefix, height, width, down, right, E, PAD_E)
            tap = weight + channels * (KERNEL_HEIGHT * KERNEL_WIDTH) + row * KERNEL_WIDTH + column
            result += tile.to(tl.float32) * tl.load(tap, mask=channels < E, other=0.0)[None, :]
    return result


@triton.jit
def convolution_backward_kernel(
    value,
    value_strides,
    grad,
    grad_strides,
    parts,
    tokens,
    heads,
    prefix,
    height,
    width,
    E: tl.constexpr,
    PAD_E: tl.constexpr,
    BLOCK: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
):
    """Sum ``grad · value`` over a block of tokens and all heads, once a tap, and ``grad`` alone for the bias.

    One program for each block of each sample; it writes its own ``parts [program, K + 1, E]``.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(tokens, BLOCK)
    batch, first, last = heads_of_program(program // blocks, heads, True)
    rows = ((program % blocks) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = (rows < tokens) & (rows >= prefix)
    channels = tl.arange(0, PAD_E)
    part = parts + program.to(tl.int64) * ((KERNEL_HEIGHT * KERNEL_WIDTH + 1) * E) + channels

    for row in range(KERNEL_HEIGHT):
        for column in tl.static_range(KERNEL_WIDTH):
            down, right = row - KERNEL_HEIGHT // 2, column - KERNEL_WIDTH // 2
            total = tl.zeros([BLOCK, PAD_E], tl.float32)
            for head in range(first, last):
                of_out = load_tile(
                    grad + batch * grad_strides[0] + head * grad_strides[1], rows, inside, grad_strides[2], E, PAD_E
                )
                head_value = value + batch * value_strides[0] + head * value_strides[1]
                tile = shifted_tile(head_value, rows, inside, value_strides[2], prefix, height, width, down, right, E, PAD_E)
                total += of_out.to(tl.float32) * tile.to(tl.float32)
            tl.store(part + (row * KERNEL_WIDTH + column) * E, tl.sum(total, axis=0), mask=channels < E)

    total = tl.zeros([BLOCK, PAD_E], tl.float32)
    for head in range(first, last):
        total += load_tile(grad + batch * grad_strides[0] + head * grad_strides[1], rows, inside, grad_strides[2], E, PAD_E).to(
            tl.float32
        )
    tl.store(part + KERNEL_HEIGHT * KERNEL_WIDTH * E, tl.sum(total, axis=0), mask=channels < E)
