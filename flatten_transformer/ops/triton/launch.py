"""From tensors to kernel launches: grids, tiles, buffers, and the sums over what the programs wrote."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head, K taps of the convolution.

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from flatten_transformer.ops.fused import Arguments
from flatten_transformer.ops.triton.convolution import convolution_backward_kernel
from flatten_transformer.ops.triton.keys import keys_backward_kernel, keys_forward_kernel
from flatten_transformer.ops.triton.queries import context_backward_kernel, queries_backward_kernel, queries_forward_kernel

_LARGEST_MULTIPLIED_POWER = 64
_WANTED_PROGRAMS = 256  # about two for each processor of a large GPU
_CACHE_BYTES = 96 * 1024  # of keys to a program, so that its second reading hits the cache while 256 of them run
_SHORTEST_LIMIT, _LONGEST_LIMIT = 256, 4096  # tokens: what a stretch writes must stay small beside what it reads
_LAUNCH = {"num_warps": 8, "num_stages": 2}


class _Sizes(NamedTuple):
    batch: int
    heads: int
    queries: int
    keys: int
    groups: int  # programs along batch, and along heads where each has its own norm
    tiles: dict[str, int]  # what the kernels are compiled for
    norm: dict[str, int]
    convolution: dict[str, int]
    grid: tuple[int, int, int]  # number of prefix tokens, height, width


def forward(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernels: see :func:`flatten_transformer.ops.fused.define_operator`.

    Returns:
        The output ``[B, H, N, E]``, the context ``[B, H, D, E]`` and the sum of the keys ``[B, H, D]``, in float32.
    """
    sizes = _sizes(a)
    block, samples = sizes.tiles["BLOCK"], (sizes.batch, sizes.heads)
    channels, value_channels = a.query.shape[3], a.value.shape[3]
    encoding_strides = (0, 0) if a.key_encoding is None else a.key_encoding.stride()[:2]

    with _on(a.query):
        tokens_cached = _CACHE_BYTES // (math.prod(a.key.shape[1::2]) * a.key.element_size())
        splits, stretch = _split(sizes.keys, block, sizes.groups, max(tokens_cached, _SHORTEST_LIMIT))
        contexts = allocate((splits, *samples, channels, value_channels), a.query)
        key_sums = allocate((splits, *samples, channels), a.query)
        keys_forward_kernel[(splits * sizes.groups,)](
            a.key, _strides(a.key), a.value, _strides(a.value), a.key_weights, a.key_encoding, encoding_strides, a.temperature,
            allocate((sizes.groups, 2, sizes.keys), a.query), contexts, key_sums,
            sizes.keys, sizes.heads, sizes.groups, splits, stretch, a.eps, a.focusing_factor,
            **sizes.tiles, **sizes.norm, **_LAUNCH,
        )  # fmt: skip
        context, key_sum = _add_up(contexts), _add_up(key_sums)

        out = _token_buffer(a.query, value_channels)
        blocks = triton.cdiv(sizes.queries, block)
        queries_forward_kernel[(blocks * sizes.groups,)](
            a.query, _strides(a.query), a.value, _strides(a.value), a.temperature, context, key_sum,
            a.conv_weight, a.conv_bias, out, _strides(out),
            sizes.queries, sizes.heads, blocks, *sizes.grid, a.eps, a.focusing_factor,
            **sizes.tiles, **sizes.norm, **sizes.convolution, **_LAUNCH,
        )  # fmt: skip
    return out, context, key_sum


def backward(grad: Tensor, a: Arguments, context: Tensor, key_sum: Tensor) -> tuple[Tensor, ...]:
    """Launch the backward kernels: see :func:`flatten_transformer.ops.fused.define_operator`.

    Returns:
        The gradients of query, key, value, temperature, conv_weight and conv_bias; empty ones for missing options.
    """
    sizes = _sizes(a)
    block, samples = sizes.tiles["BLOCK"], (sizes.batch, sizes.heads)
    channels, value_channels = a.query.shape[3], a.value.shape[3]
    encoding_strides = (0, 0) if a.key_encoding is None else a.key_encoding.stride()[:2]
    of_query, of_key, of_value = (_token_buffer(x, x.shape[3]) for x in (a.query, a.key, a.value))
    query_blocks, key_blocks = (triton.cdiv(tokens, block) for tokens in (sizes.queries, sizes.keys))
    from_queries, from_keys = sizes.batch * query_blocks, sizes.batch * key_blocks

    with _on(a.query):
        parts = None if a.temperature is None else allocate((from_queries + from_keys, *a.temperature.shape), grad)
        numbers = allocate((*samples, 2, sizes.queries), grad)
        queries_backward_kernel[(query_blocks * sizes.groups,)](
            a.query, _strides(a.query), a.temperature, context, key_sum, grad, _strides(grad),
            of_query, _strides(of_query), parts, numbers,
            sizes.queries, sizes.heads, query_blocks, a.eps, a.focusing_factor,
            **sizes.tiles, **sizes.norm, **_LAUNCH,
        )  # fmt: skip

        rows = math.prod(samples)
        splits, stretch = _split(sizes.queries, block, rows, _LONGEST_LIMIT)
        of_means = allocate((splits, *samples, channels, value_channels), grad)
        of_shares = allocate((splits, *samples, channels), grad)
        context_backward_kernel[(splits * rows,)](
            a.query, _strides(a.query), a.temperature, key_sum, grad, _strides(grad), numbers, of_means, of_shares,
            sizes.queries, sizes.heads, splits, stretch, sizes.batch, a.eps, a.focusing_factor,
            **sizes.tiles, WHOLE=sizes.norm["WHOLE"], **_LAUNCH,
        )  # fmt: skip

        keys_backward_kernel[(key_blocks * sizes.groups,)](
            a.key, _strides(a.key), a.value, _strides(a.value), a.key_weights, a.key_encoding, encoding_strides, a.temperature,
            key_sum, _add_up(of_means), _add_up(of_shares), grad, _strides(grad), a.conv_weight,
            of_key, _strides(of_key), of_value, _strides(of_value), None if parts is None else parts[from_queries:],
            sizes.keys, sizes.heads, key_blocks, *sizes.grid, a.eps, a.focusing_factor,
            **sizes.tiles, **sizes.norm, **sizes.convolution, **_LAUNCH,
        )  # fmt: skip

        of_temperature = grad.new_empty(0) if parts is None else _add_up(parts)
        of_weight, of_bias = grad.new_empty(0), grad.new_empty(0)
        if a.conv_weight is not None:
            taps = allocate((from_keys, a.conv_weight[0].numel() + 1, value_channels), grad)
            convolution_backward_kernel[(from_keys,)](
                a.value, _strides(a.value), grad, _strides(grad), taps, sizes.keys, sizes.heads, *sizes.grid,
                value_channels, sizes.tiles["PAD_E"], block, **sizes.convolution, **_LAUNCH,
            )  # fmt: skip
            *of_taps, of_all = _add_up(taps)  # [K + 1, E]
            of_weight = torch.stack(of_taps, dim=1).reshape(a.conv_weight.shape)
            of_bias = of_all.clone() if a.conv_bias is not None else of_bias
    return of_query, of_key, of_value, of_temperature, of_weight, of_bias


def allocate(shape: Sequence[int], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return memory that a kernel will fill, on the device of ``like``: every output and buffer comes from here."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def _token_buffer(x: Tensor, channels: int) -> Tensor:
    """Return ``[B, H, T, channels]`` whose heads lie side by side in memory, in the dtype of ``x``."""
    batch, heads, tokens, _ = x.shape
    return allocate((batch, tokens, heads, channels), x, x.dtype).transpose(1, 2)


def _sizes(a: Arguments) -> _Sizes:
    batch, heads, queries, channels = a.query.shape
    keys, value_channels = a.value.shape[2:]
    # the matrix products of the kernels need at least 16 in each direction
    padded, value_padded = (max(16, triton.next_power_of_2(width)) for width in (channels, value_channels))
    widest = max(padded, value_padded)
    if torch.float32 in (a.query.dtype, a.key.dtype, a.value.dtype):
        block = 32 if widest <= 32 else 16
    else:
        block = 64 if widest <= 64 else 32
    height, width = a.grid_size or (1, 1)
    kernel_height, kernel_width = (0, 0) if a.conv_weight is None else a.conv_weight.shape[2:]
    return _Sizes(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        groups=batch if a.joint else batch * heads,
        tiles={"D": channels, "E": value_channels, "PAD_D": padded, "PAD_E": value_padded, "BLOCK": block},
        norm={"WHOLE": _whole(a.focusing_factor), "JOINT": a.joint},
        convolution={"KERNEL_HEIGHT": kernel_height, "KERNEL_WIDTH": kernel_width},
        grid=(keys - height * width, height, width),
    )


def _split(tokens: int, block: int, programs: int, longest: int) -> tuple[int, int]:
    """Return into how many stretches to cut the tokens, and the length of one: whole blocks, about ``longest`` at most."""
    wanted = max(triton.cdiv(_WANTED_PROGRAMS, programs), triton.cdiv(tokens, min(longest, _LONGEST_LIMIT)))
    stretch = block * triton.cdiv(max(tokens, 1), block * wanted)
    return max(1, triton.cdiv(tokens, stretch)), stretch


def _add_up(parts: Tensor) -> Tensor:
    """Return the sum over the first axis: always in the same order, where atomic additions would not be."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of batch, heads and tokens."""
    return x.stride(0), x.stride(1), x.stride(2)


def _whole(focusing_factor: float) -> int:
    """Return the power if products compute it, else 0."""
    whole = int(focusing_factor)
    return whole if whole == focusing_factor and whole <= _LARGEST_MULTIPLIED_POWER else 0


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Make the GPU of ``x`` the current one, which is where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
