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

from flatten_transformer.ops.triton.convolution import convolution_backward_kernel
from flatten_transformer.ops.triton.keys import keys_backward_kernel, keys_forward_kernel
from flatten_transformer.ops.triton.queries import context_backward_kernel, queries_backward_kernel, queries_forward_kernel

_LARGEST_MULTIPLIED_POWER = 64
_WANTED_PROGRAMS = 512  # a few for each of the about 130 processors of a large GPU
_LONGEST_STRETCH = 512  # tokens of a split: their second reading should still hit the cache


class _Sizes(NamedTuple):
    batch: int
    heads: int
    queries: int
    keys: int
    groups: int  # programs along batch, and along heads where each has its own norm
    tiles: dict[str, int]  # what the kernels are compiled for
    block: int
    launch: dict[str, int]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_weights: Tensor | None,
    key_encoding: Tensor | None,
    temperature: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    grid_size: Sequence[int],
    focusing_factor: float,
    joint: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernels: see :func:`flatten_transformer.ops.fused.define_operator`, also for the shapes.

    Returns:
        The output ``[B, H, N, E]``, the context ``[B, H, D, E]`` and the sum of the keys ``[B, H, D]``, in float32.
    """
    sizes = _sizes(query, key, value, joint)
    norm = {**sizes.tiles, "WHOLE": _whole(focusing_factor), "JOINT": joint}
    samples = (sizes.batch, sizes.heads)
    channels, value_channels = query.shape[3], value.shape[3]

    with _on(query):
        splits, stretch = _split(sizes.keys, sizes.block, sizes.groups)
        numbers = allocate((2, sizes.groups, sizes.keys), query)
        contexts = allocate((splits, *samples, channels, value_channels), query)
        key_sums = allocate((splits, *samples, channels), query)
        keys_forward_kernel[(splits * sizes.groups,)](
            key, _strides(key), value, _strides(value), key_weights, key_encoding, temperature,
            numbers, contexts, key_sums, sizes.keys, sizes.heads, sizes.groups, splits, stretch, eps, focusing_factor,
            **norm, **sizes.launch,
        )  # fmt: skip
        context, key_sum = _add_up(contexts), _add_up(key_sums)

        out = _token_buffer(query, value_channels)
        blocks = triton.cdiv(sizes.queries, sizes.block)
        queries_forward_kernel[(blocks * sizes.groups,)](
            query, _strides(query), value, _strides(value), temperature, context, key_sum, conv_weight, conv_bias,
            out, _strides(out), sizes.queries, sizes.heads, blocks, *_grid(value, conv_weight, grid_size), eps,
            focusing_factor, **norm, **_kernel_size(conv_weight), **sizes.launch,
        )  # fmt: skip
    return out, context, key_sum


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_weights: Tensor | None,
    key_encoding: Tensor | None,
    temperature: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    context: Tensor,
    key_sum: Tensor,
    grid_size: Sequence[int],
    focusing_factor: float,
    joint: bool,
    eps: float,
) -> tuple[Tensor, ...]:
    """Launch the backward kernels: see :func:`flatten_transformer.ops.fused.define_operator`, also for the shapes.

    Returns:
        The gradients of query, key, value, temperature, conv_weight and conv_bias; empty ones for missing options.
    """
    sizes = _sizes(query, key, value, joint)
    norm = {**sizes.tiles, "WHOLE": _whole(focusing_factor), "JOINT": joint}
    samples = (sizes.batch, sizes.heads)
    channels, value_channels = query.shape[3], value.shape[3]
    of_query, of_key, of_value = (_token_buffer(x, x.shape[3]) for x in (query, key, value))
    query_blocks, key_blocks = (triton.cdiv(tokens, sizes.block) for tokens in (sizes.queries, sizes.keys))
    from_queries = sizes.batch * query_blocks

    with _on(query):
        temperature_parts = None
        if temperature is not None:
            temperature_parts = allocate((from_queries + sizes.batch * key_blocks, *temperature.shape), query)
        numbers = allocate((2, *samples, sizes.queries), query)
        queries_backward_kernel[(query_blocks * sizes.groups,)](
            query, _strides(query), temperature, context, key_sum, grad, _strides(grad), of_query, _strides(of_query),
            temperature_parts, numbers, sizes.queries, sizes.heads, query_blocks, sizes.groups, eps, focusing_factor,
            **norm, **sizes.launch,
        )  # fmt: skip

        rows = math.prod(samples)
        splits, stretch = _split(sizes.queries, sizes.block, rows)
        of_means = allocate((splits, *samples, channels, value_channels), query)
        of_shares = allocate((splits, *samples, channels), query)
        context_backward_kernel[(splits * rows,)](
            query, _strides(query), temperature, key_sum, grad, _strides(grad), numbers, of_means, of_shares,
            sizes.queries, sizes.heads, splits, stretch, sizes.batch, eps, focusing_factor,
            **sizes.tiles, WHOLE=norm["WHOLE"], **sizes.launch,
        )  # fmt: skip

        keys_backward_kernel[(key_blocks * sizes.groups,)](
            key, _strides(key), value, _strides(value), key_weights, key_encoding, temperature, key_sum,
            _add_up(of_means), _add_up(of_shares), grad, _strides(grad), conv_weight,
            of_key, _strides(of_key), of_value, _strides(of_value),
            None if temperature_parts is None else temperature_parts[from_queries:],
            sizes.keys, sizes.heads, key_blocks, *_grid(value, conv_weight, grid_size), eps, focusing_factor,
            **norm, **_kernel_size(conv_weight), **sizes.launch,
        )  # fmt: skip

        of_temperature = grad.new_empty(0) if temperature_parts is None else _add_up(temperature_parts)
        of_weight, of_bias = grad.new_empty(0), grad.new_empty(0)
        if conv_weight is not None:
            parts = allocate((from_queries, conv_weight[0].numel() + 1, value_channels), query)
            convolution_backward_kernel[(from_queries,)](
                value, _strides(value), grad, _strides(grad), parts, sizes.keys, sizes.heads,
                *_grid(value, conv_weight, grid_size), value_channels, sizes.tiles["PAD_E"], sizes.block,
                **_kernel_size(conv_weight), **sizes.launch,
            )  # fmt: skip
            taps = _add_up(parts)  # [K + 1, E]
            of_weight = taps[:-1].T.reshape(conv_weight.shape).contiguous()
            of_bias = taps[-1].clone() if conv_bias is not None else of_bias
    return of_query, of_key, of_value, of_temperature, of_weight, of_bias


def allocate(shape: Sequence[int], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return memory that a kernel will fill, on the device of ``like``: every output and buffer comes from here."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def _token_buffer(x: Tensor, channels: int) -> Tensor:
    """Return ``[B, H, T, channels]`` whose heads lie side by side in memory, in the dtype of ``x``."""
    batch, heads, tokens, _ = x.shape
    return allocate((batch, tokens, heads, channels), x, x.dtype).transpose(1, 2)


def _sizes(query: Tensor, key: Tensor, value: Tensor, joint: bool) -> _Sizes:
    batch, heads, queries, channels = query.shape
    value_channels = value.shape[3]
    # the matrix products of the kernels need at least 16 in each direction
    padded, value_padded = (max(16, triton.next_power_of_2(width)) for width in (channels, value_channels))
    block = 64 if max(padded, value_padded) <= 64 else 32
    if torch.float32 in (query.dtype, key.dtype, value.dtype):
        block = 32 if max(padded, value_padded) <= 32 else 16
    return _Sizes(
        batch,
        heads,
        queries,
        key.shape[2],
        batch if joint else batch * heads,
        {"D": channels, "E": value_channels, "PAD_D": padded, "PAD_E": value_padded, "BLOCK": block},
        block,
        {"num_warps": 8, "num_stages": 2},
    )


def _split(tokens: int, block: int, programs: int) -> tuple[int, int]:
    """Return into how many stretches to cut the tokens, and the length of one: a multiple of the block."""
    wanted = max(triton.cdiv(_WANTED_PROGRAMS, programs), triton.cdiv(tokens, _LONGEST_STRETCH))
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


def _grid(value: Tensor, conv_weight: Tensor | None, grid_size: Sequence[int]) -> tuple[int, int, int]:
    """Return the number of prefix tokens, and height and width of the grid."""
    if conv_weight is None:
        return 0, 1, 1
    height, width = grid_size
    return value.shape[2] - height * width, height, width


def _kernel_size(conv_weight: Tensor | None) -> dict[str, int]:
    height, width = (0, 0) if conv_weight is None else conv_weight.shape[2:]
    return {"KERNEL_HEIGHT": height, "KERNEL_WIDTH": width}


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Make the GPU of ``x`` the current one, which is where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
