"""The depthwise convolution of the values on a grid of tokens: inside other kernels, and the gradients of its kernels.

Tokens are taken in groups of four neighbours of one row (a row of the grid is filled up to whole groups), so that a value
that was loaded and widened once serves as many of four outputs as its row of the kernel reaches.
"""

# B batch, H heads, T tokens (prefix tokens, then the grid), E value channels per head, kernels of HEIGHT × WIDTH taps.

import triton
import triton.language as tl

from flatten_transformer.ops.triton.features import load_channels, place_of_program

GROUP = tl.constexpr(4)  # tokens; convolved_tile joins as many


@triton.jit
def place_of_groups(groups, prefix, width):
    """Return row and first column of groups of tokens in the grid; rows are negative for prefix tokens."""
    before, across = tl.cdiv(prefix, GROUP), tl.cdiv(width, GROUP)
    on_grid = groups - before
    row = tl.where(on_grid < 0, -1, on_grid // across)
    return row, (on_grid - row * across) * GROUP


@triton.jit
def tokens_of_block(block, prefix, height, width, BLOCK: tl.constexpr):
    """Return the tokens of a block of whole groups ``[BLOCK]``, int64, and which of them there are."""
    places = block * BLOCK + tl.arange(0, BLOCK)
    row, first = place_of_groups(places // GROUP, prefix, width)
    column = first + places % GROUP
    tokens = tl.where(row < 0, places, prefix + row * width + column)
    return tokens.to(tl.int64), tl.where(row < 0, places < prefix, (column < width) & (row < height))


@triton.jit
def rows_around(pointer, stride, groups, prefix, height, width, down):
    """Return a pointer to each group's first token ``down`` rows below it, whether it has such a row, and its column."""
    row, first = place_of_groups(groups, prefix, width)
    to_row = row + down
    there = (row >= 0) & (row < height) & (to_row >= 0) & (to_row < height)
    return pointer + (prefix + to_row * width + first).to(tl.int64) * stride, there, first


@triton.jit
def shifted_tile(rows, stride, there, column, right, width, E: tl.constexpr, PAD_E: tl.constexpr):
    """Return the values ``right`` columns from the tokens of :func:`rows_around`, in float32, zero beyond the grid."""
    channels = tl.arange(0, PAD_E)
    to_column = column + right
    inside = there & (to_column >= 0) & (to_column < width)
    mask = inside[:, None] & (channels < E)[None, :]
    return tl.load((rows + right * stride)[:, None] + channels[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def convolved_tile(
    pointer,
    weight,
    block,
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
    """Return the convolution of a head with ``weight [K, E]`` (SIGN 1) or its transpose (SIGN -1), ``[BLOCK, PAD_E]``.

    Its tokens are those of :func:`tokens_of_block`.
    """
    groups = block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    sums = (tl.zeros([BLOCK // GROUP, PAD_E], tl.float32),) * GROUP  # one for each place in a group
    for row in range(KERNEL_HEIGHT):  # not unrolled: 25 tiles in flight would not fit into the registers
        down = SIGN * (row - KERNEL_HEIGHT // 2)
        rows, there, column = rows_around(pointer, stride, groups, prefix, height, width, down)
        taps = ()
        for step in tl.static_range(KERNEL_WIDTH):
            tap = row * KERNEL_WIDTH + (step if SIGN == 1 else KERNEL_WIDTH - 1 - step)
            taps = taps + (load_channels(weight + tap * E, E, PAD_E)[None, :],)
        for step in tl.static_range(KERNEL_WIDTH + GROUP - 1):
            tile = shifted_tile(rows, stride, there, column, step - KERNEL_WIDTH // 2, width, E, PAD_E)
            added = ()
            for place in tl.static_range(GROUP):
                if step - place >= 0 and step - place < KERNEL_WIDTH:
                    added = added + (sums[place] + tile * taps[step - place],)
                else:
                    added = added + (sums[place],)
            sums = added
    joined = tl.join(tl.join(sums[0], sums[2]), tl.join(sums[1], sums[3]))  # [groups, E, 2, 2], place = 2 · i + j
    joined = tl.permute(tl.reshape(joined, (BLOCK // GROUP, PAD_E, GROUP)), (0, 2, 1))
    return tl.reshape(joined, (BLOCK, PAD_E))


@triton.jit
def convolution_backward_kernel(
    value,
    value_strides,
    grad,
    grad_strides,
    parts,
    heads,
    splits,
    split_groups,
    prefix,
    height,
    width,
    E: tl.constexpr,
    PAD_E: tl.constexpr,
    GROUPS: tl.constexpr,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
):
    """Sum ``grad · value`` over a stretch of one head's groups of tokens, once a tap, and ``grad`` alone for the bias.

    It writes its own ``parts [program, K + 1, E]``.
    """
    split, batch, head = place_of_program(splits, heads)
    channels = tl.arange(0, PAD_E)
    head_grad = grad + batch * grad_strides[0] + head * grad_strides[1]
    head_value = value + batch * value_strides[0] + head * value_strides[1]
    sums = (tl.zeros([GROUPS, PAD_E], tl.float32),) * (KERNEL_HEIGHT * KERNEL_WIDTH)
    bias = tl.zeros([GROUPS, PAD_E], tl.float32)

    for start in range(split * split_groups, (split + 1) * split_groups, GROUPS):
        groups = start + tl.arange(0, GROUPS)
        rows, there, column = rows_around(head_grad, grad_strides[2], groups, prefix, height, width, 0)
        outputs = ()
        for place in tl.static_range(GROUP):
            outputs = outputs + (shifted_tile(rows, grad_strides[2], there, column, place, width, E, PAD_E),)
            bias += outputs[place]
        added = ()
        for row in tl.static_range(KERNEL_HEIGHT):
            down = row - KERNEL_HEIGHT // 2
            rows, there, column = rows_around(head_value, value_strides[2], groups, prefix, height, width, down)
            of_row = ()
            for tap in tl.static_range(KERNEL_WIDTH):
                of_row = of_row + (sums[row * KERNEL_WIDTH + tap],)
            for step in tl.static_range(KERNEL_WIDTH + GROUP - 1):
                tile = shifted_tile(rows, value_strides[2], there, column, step - KERNEL_WIDTH // 2, width, E, PAD_E)
                further = ()
                for tap in tl.static_range(KERNEL_WIDTH):
                    if step - tap >= 0 and step - tap < GROUP:
                        further = further + (of_row[tap] + tile * outputs[step - tap],)
                    else:
                        further = further + (of_row[tap],)
                of_row = further
            added = added + of_row
        sums = added

    part = parts + tl.program_id(0).to(tl.int64) * ((KERNEL_HEIGHT * KERNEL_WIDTH + 1) * E) + channels
    for tap in tl.static_range(KERNEL_HEIGHT * KERNEL_WIDTH):
        tl.store(part + tap * E, tl.sum(sums[tap], axis=0), mask=channels < E)
    tl.store(part + KERNEL_HEIGHT * KERNEL_WIDTH * E, tl.sum(bias, axis=0), mask=channels < E)
