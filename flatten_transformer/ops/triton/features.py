"""Device functions that every kernel shares: tiles, powers, the features of one head, the norms of a token, exact products.

With ``a = (relu(x) + eps) / temperature`` a head's feature is ``f = gain · powered``, where ``powered = (a / peak)**p``
lies between 0 and 1 (``peak`` is that head's largest a) and ``gain`` is one number a token: see README.md.
"""

# H heads, T tokens (N queries or M keys), D key channels, E value channels per head; tiles are [BLOCK, PADDED].

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # its tl.dot reads bfloat16 as integers
TINY = tl.constexpr(1e-37)  # lower bound of divisors
SHIFT = tl.constexpr(2.0**-16)  # scales all a down, exactly: sums of the largest stay finite


@triton.jit
def load_tile(pointer, rows, inside, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return rows of a tensor whose last axis is contiguous, ``[BLOCK, PADDED]`` in its dtype, zero outside."""
    channels = tl.arange(0, PADDED)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] * stride + channels[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, tile, rows, inside, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write rows as :func:`load_tile` reads them, in the dtype of ``pointer``."""
    channels = tl.arange(0, PADDED)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    tl.store(pointer + rows[:, None] * stride + channels[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_channels(pointer, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return one number a channel as float32, ``[PADDED]``, zero beyond WIDTH."""
    channels = tl.arange(0, PADDED)
    return tl.load(pointer + channels, mask=channels < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def place_of_program(parts, heads):
    """Return a program's part of the tokens, its sample and its head.

    The last two are int64, and so must be a token's number before it meets a stride: the product may exceed 2³¹.
    """
    program = tl.program_id(0)
    at = program // parts
    return program % parts, (at // heads).to(tl.int64), (at % heads).to(tl.int64)


@triton.jit
def power(base, exponent, WHOLE: tl.constexpr):
    """Return ``base**exponent`` for 0 ≤ base ≤ 1: by products if the exponent is WHOLE > 0, up to 64."""
    if WHOLE > 0:
        result = base
        for bit in tl.static_range(0, 7):
            if WHOLE >> (6 - bit) > 1:
                result = result * result
                if (WHOLE >> (6 - bit)) & 1 == 1:
                    result = result * base
    else:
        result = tl.exp2(exponent * tl.log2(tl.where(base < TINY, TINY, base)))  # NaN stays NaN
    return result


@triton.jit
def temperature_of(inverse, head, D: tl.constexpr, PADDED: tl.constexpr):
    """Return the reciprocals of a head's temperatures, times SHIFT, ``[PADDED]``; NaN for negative ones.

    They are zero beyond D, so that padding never counts.
    """
    if inverse is None:
        result = tl.where(tl.arange(0, PADDED) < D, SHIFT, 0.0)
    else:
        loaded = load_channels(inverse + head * D, D, PADDED)
        result = tl.where(loaded >= 0.0, loaded * SHIFT, float("nan"))
    return result


@triton.jit
def load_scores(x, strides, encoding, encoding_strides, batch, head, rows, inside, D: tl.constexpr, PADDED: tl.constexpr):
    """Return x, with its encoding ``[H, T, D]`` if there is one, as float32 ``[BLOCK, PADDED]``."""
    scores = load_tile(x + batch * strides[0] + head * strides[1], rows, inside, strides[2], D, PADDED).to(tl.float32)
    if encoding is not None:
        scores += load_tile(encoding + head * encoding_strides[0], rows, inside, encoding_strides[1], D, PADDED).to(tl.float32)
    return scores


@triton.jit
def features_of_head(scores, inverse_temperature, eps, exponent, WHOLE: tl.constexpr):
    """Return a token's largest a, shifted, and its reciprocal, ``[BLOCK]``, a over its largest and that to the power p."""
    positive = (tl.where(scores < 0.0, 0.0, scores) + eps) * inverse_temperature[None, :]
    peak = tl.max(positive, axis=1)
    inverse = 1.0 / peak
    unit = positive * inverse[:, None]
    return peak, inverse, unit, power(unit, exponent, WHOLE)


@triton.jit
def load_norms(norms, group, rows, inside, total):
    """Return the norms of these tokens from norms_kernel: 1 / peak, its gain, 1 / ‖u‖² and 1 / ‖u**p‖², each ``[BLOCK]``."""
    at = norms + group * 4 * total + rows
    inverse_peak = tl.load(at, mask=inside, other=0.0)
    gain = tl.load(at + total, mask=inside, other=0.0)
    inverse_unit = tl.load(at + 2 * total, mask=inside, other=0.0)
    inverse_power = tl.load(at + 3 * total, mask=inside, other=0.0)
    return inverse_peak, gain, inverse_unit, inverse_power


@triton.jit
def sum_over_heads(numbers, stride, batch, head, heads, rows, inside, JOINT: tl.constexpr):
    """Return the sum of ``numbers [B, H, …]`` over all heads if the norm is joint, else those of one head, ``[BLOCK]``."""
    if JOINT:
        total = tl.zeros(rows.shape, tl.float32)
        for other in range(heads):
            total += tl.load(numbers + (batch * heads + other) * stride + rows, mask=inside, other=0.0)
    else:
        total = tl.load(numbers + (batch * heads + head) * stride + rows, mask=inside, other=0.0)
    return total


@triton.jit
def gradient_over_unit(
    of_powered, total, unit, powered, ratio, power_ratio, inverse_unit, inverse_power, exponent, WHOLE: tl.constexpr
):
    """Return ``a · da`` of one head divided by ``unit``, through ``f = ‖a‖ a**p / ‖a**p‖``: no channel is divided by.

    ``of_powered`` is ``f · df / powered``, ``total [BLOCK]`` the sum of f · df over all channels of the norm, ``ratio
    [BLOCK]`` the head's peak over the peak of the norm, ``power_ratio`` that to the power p; the rest is of
    features_of_head and load_norms.
    """
    of_norm = unit * (total * ratio * ratio * inverse_unit)[:, None]
    of_power = of_powered - powered * (total * power_ratio * power_ratio * inverse_power)[:, None]
    if WHOLE == 1:
        result = of_power + of_norm
    elif WHOLE > 1:
        result = exponent * power(unit, exponent, WHOLE - 1) * of_power + of_norm
    else:
        result = exponent * power(unit, exponent - 1.0, WHOLE) * of_power + of_norm
    return result


@triton.jit
def store_gradients(
    of_x,
    strides,
    of_temperature,
    gradient,
    scores,
    unit,
    inverse_own,
    inverse_temperature,
    batch,
    head,
    part,
    rows,
    inside,
    D: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write the gradient of queries or keys from :func:`gradient_over_unit`, and this program's part of the temperature's."""
    of_scores = tl.where(scores > 0, gradient * inverse_own[:, None] * inverse_temperature[None, :], 0.0)
    store_tile(of_x + batch * strides[0] + head * strides[1], of_scores, rows, inside, strides[2], D, PADDED)
    if of_temperature is not None:
        channels = tl.arange(0, PADDED)
        of_head = -tl.sum(unit * gradient, axis=0) * (inverse_temperature / SHIFT)
        tl.store(of_temperature + part * D + channels, of_head, mask=channels < D)


@triton.jit
def exact_column_sums(left, numbers):
    """Return ``leftᵀ @ numbers`` for ``numbers [BLOCK]`` in float32: in bfloat16, which has its range, as rounding and rest."""
    if left.dtype == tl.bfloat16:
        columns = tl.arange(0, 16)[None, :]
        rounded = numbers.to(left.dtype)
        rest = (numbers - rounded.to(tl.float32)).to(left.dtype)
        right = tl.where(columns == 0, rounded[:, None], tl.where(columns == 1, rest[:, None], 0.0).to(left.dtype))
        sums = tl.sum(product(tl.trans(left), right), axis=1)
    else:
        sums = tl.sum(left.to(tl.float32) * numbers[:, None], axis=0)
    return sums


@triton.jit
def product(left, right):
    """Return ``left @ right`` in the dtype of ``right``, summed in float32, without tf32."""
    left = left.to(right.dtype)
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def load_means(means, at, rows, D: tl.constexpr, E: tl.constexpr, PAD_E: tl.constexpr, PARTS: tl.constexpr):
    """Return rows of means_kernel's output, rounded to the tokens' dtype, ``[PAD_D, PAD_E]``, and the rounding residuals."""
    row = means + at * (D * E * PARTS)
    rounded = load_tile(row, rows, rows < D, E * PARTS, E, PAD_E)
    rest = rounded
    if PARTS == 2:
        rest = load_tile(row + E, rows, rows < D, E * PARTS, E, PAD_E)
    return rounded, rest


@triton.jit
def exact_product(left, rounded, rest, PARTS: tl.constexpr):
    """Return ``left @ rightᵀ`` for ``right = rounded + rest``: gradients are differences of these products.

    Rounding ``right`` to the 8 bits of bfloat16 would leave little of them.
    """
    result = product(left, tl.trans(rounded))
    if PARTS == 2:
        result += product(left, tl.trans(rest))
    return result
