"""Device functions that every kernel shares: tiles, powers, the features of one head, the norms of a token, exact products.

With ``a = (relu(x) + eps) / temperature`` a head's feature is ``f = gain · powered``, where ``powered = (a / peak)**p``
lies between 0 and 1 (``peak`` is that head's largest a) and ``gain`` is one number a token: see README.md.
"""

# H heads, T tokens (N queries or M keys), D key channels, E value channels per head; tiles are [BLOCK, PADDED].

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # whose tl.dot takes bfloat16 for integers
TINY = tl.constexpr(1e-37)  # what divides is at least this


@triton.jit
def load_tile(pointer, rows, inside, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return rows of a tensor whose last axis is contiguous, ``[BLOCK, PADDED]`` in its dtype, zero outside."""
    channels = tl.arange(0, PADDED)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] * stride + channels[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, tile, rows, inside, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write what :func:`load_tile` reads, in the dtype of ``pointer``."""
    channels = tl.arange(0, PADDED)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    tl.store(pointer + rows[:, None] * stride + channels[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_channels(pointer, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return one number a channel, ``[PADDED]``, zero beyond WIDTH."""
    channels = tl.arange(0, PADDED)
    return tl.load(pointer + channels, mask=channels < WIDTH, other=0.0)


@triton.jit
def heads_of_program(group, heads, JOINT: tl.constexpr):
    """Return batch, first head and one past the last: of all heads if their norm is joint, else of one.

    All three are int64, and so is a loop's head between them: a product with a stride may exceed 2³¹.
    """
    group = group.to(tl.int64)
    if JOINT:
        batch, first, last = group, group * 0, group * 0 + heads
    else:
        batch, first, last = group // heads, group % heads, group % heads + 1
    return batch, first, last


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
        result = tl.exp2(exponent * tl.log2(tl.maximum(base, TINY)))
    return result


@triton.jit
def temperature_of(temperature, head, D: tl.constexpr, PADDED: tl.constexpr):
    """Return the reciprocals of a head's temperatures, ``[PADDED]``; zero beyond D, so that padding never counts."""
    channels = tl.arange(0, PADDED)
    if temperature is None:
        inverse = tl.where(channels < D, 1.0, 0.0)
    else:
        inverse = 1.0 / tl.load(temperature + head * D + channels, mask=channels < D, other=float("inf"))
    return inverse


@triton.jit
def load_scores(x, strides, encoding, encoding_strides, batch, head, rows, inside, D: tl.constexpr, PADDED: tl.constexpr):
    """Return x, with its encoding ``[H, T, D]`` if there is one, as float32 ``[BLOCK, PADDED]``."""
    scores = load_tile(x + batch * strides[0] + head * strides[1], rows, inside, strides[2], D, PADDED).to(tl.float32)
    if encoding is not None:
        scores += load_tile(encoding + head * encoding_strides[0], rows, inside, encoding_strides[1], D, PADDED)
    return scores


@triton.jit
def features_of_head(scores, inverse_temperature, eps, exponent, WHOLE: tl.constexpr):
    """Return a token's largest a ``[BLOCK]``, a divided by it, and that to the power p, both ``[BLOCK, PADDED]``."""
    positive = (tl.maximum(scores, 0.0) + eps) * inverse_temperature[None, :]
    peak = tl.max(positive, axis=1)
    unit = positive * (1.0 / peak)[:, None]
    return peak, unit, power(unit, exponent, WHOLE)


@triton.jit
def norms_of_tokens(
    x,
    strides,
    encoding,
    encoding_strides,
    temperature,
    batch,
    first,
    last,
    rows,
    inside,
    eps,
    exponent,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Return peak, ``‖u‖²`` and ``‖u**p‖²`` with ``u = a / peak`` over the heads first to last; each ``[BLOCK]``.

    The peak grows from head to head, and what was summed before shrinks with it: one pass, nothing overflows.
    """
    peak = tl.zeros([BLOCK], tl.float32)
    unit_square = tl.zeros([BLOCK], tl.float32)
    power_square = tl.zeros([BLOCK], tl.float32)
    for head in range(first, last):
        scores = load_scores(x, strides, encoding, encoding_strides, batch, head, rows, inside, D, PADDED)
        own, unit, powered = features_of_head(scores, temperature_of(temperature, head, D, PADDED), eps, exponent, WHOLE)
        top = tl.maximum(peak, own)
        before, now = peak / top, own / top
        unit_square = unit_square * before * before + tl.sum(unit * unit, axis=1) * now * now
        before, now = power(before, exponent, WHOLE), power(now, exponent, WHOLE)
        power_square = power_square * before * before + tl.sum(powered * powered, axis=1) * now * now
        peak = top
    return peak, unit_square, power_square


@triton.jit
def gradient_of_scores(scores, log_gradient, eps):
    """Return the gradient of x from that of ln a, which is ``a · da``: the temperature drops out."""
    return tl.where(scores > 0, log_gradient / (tl.maximum(scores, 0.0) + eps), 0.0)


@triton.jit
def gradient_of_log_features(products, total, unit, powered, ratio, power_ratio, unit_square, power_square, exponent):
    """Return ``a · da`` of one head from ``products = f · df``, through ``f = ‖a‖ a**p / ‖a**p‖``.

    ``total [BLOCK]`` is the sum of the products over all channels of the norm, ``ratio [BLOCK]`` the head's peak over the
    peak of the norm, ``power_ratio`` that to the power p; the rest is of features_of_head and norms_of_tokens.
    """
    of_norm = unit * unit * (total * ratio * ratio / unit_square)[:, None]
    of_power_norm = powered * powered * (total * power_ratio * power_ratio / power_square)[:, None]
    return exponent * (products - of_power_norm) + of_norm


@triton.jit
def product(left, right):
    """Return ``left @ right`` in the dtype of ``right``, summed in float32, without tf32."""
    left = left.to(right.dtype)
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def exact_product(left, right):
    """Return ``left @ rightᵀ`` for ``right`` in float32: in half precision as two products, of its head and its rest.

    Gradients are differences of these products; rounding ``right`` to 8 bits would leave little of them.
    """
    right = tl.trans(right)
    rounded = right.to(left.dtype)
    result = product(left, rounded)
    if left.dtype != tl.float32:
        result += product(left, (right - rounded.to(tl.float32)).to(left.dtype))
    return result
