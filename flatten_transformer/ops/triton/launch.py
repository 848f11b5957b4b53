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

from flatten_transformer.ops.fused import Arguments, Saved
from flatten_transformer.ops.triton.convolution import GROUP, convolution_backward_kernel
from flatten_transformer.ops.triton.keys import keys_backward_kernel, keys_forward_kernel, values_backward_kernel
from flatten_transformer.ops.triton.norms import means_kernel, norms_kernel
from flatten_transformer.ops.triton.queries import context_backward_kernel, queries_backward_kernel, queries_forward_kernel

_LARGEST_MULTIPLIED_POWER = 64
_WANTED_PROGRAMS = 528  # four for each processor of a large GPU
_SHORTEST, _LONGEST = 128, 4096  # tokens of a stretch: what it writes must stay small beside what it reads
_MEANS_ROWS = 16
_LAUNCH: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
_CROWDED = _LAUNCH | ({"maxnreg": 128} if torch.version.cuda else {})  # so that four programs share a processor


class _Blocks(NamedTuple):
    """Tokens of a head that a program holds at a time: what was quickest on an H100."""

    few: int
    some: int
    many: int


class _Sizes(NamedTuple):
    batch: int
    heads: int
    queries: int
    keys: int
    tiles: dict[str, int]  # what the kernels are compiled for
    block: _Blocks
    means: dict[str, int]
    norm: dict[str, int]
    convolution: dict[str, int]
    grid: tuple[int, int, int] | None  # number of prefix tokens, height, width; None without a convolution

    @property
    def samples(self) -> int:
        """Heads of all samples."""
        return self.batch * self.heads

    @property
    def narrow(self) -> bool:
        """Whether heads are so narrow that other kernels gain by sharing a processor than among wide ones."""
        return max(self.tiles["PAD_D"], self.tiles["PAD_E"]) <= 32

    def grid_of(self, tokens: int) -> tuple[int, int, int]:
        """Return the grid; without a convolution all tokens are one row."""
        return self.grid or (0, 1, tokens)

    def groups(self, tokens: int) -> int:
        """Return the number of groups of neighbours in the grid."""
        prefix, height, width = self.grid_of(tokens)
        return -(-prefix // GROUP.value) + height * -(-width // GROUP.value)


def forward(a: Arguments) -> tuple[Tensor, Saved]:
    """Launch the forward kernels: see :func:`flatten_transformer.ops.fused.define_operator`.

    Saves the means of the values in ``context``: in half precision two numbers side by side in the place of one.
    """
    sizes = _sizes(a)
    channels, value_channels = a.query.shape[3], a.value.shape[3]
    samples = (sizes.batch, sizes.heads)
    encoding_strides = (0, 0) if a.key_encoding is None else a.key_encoding.stride()[:2]
    saved = Saved(
        context=allocate((*samples, channels, value_channels), a.query),
        key_sum=allocate((*samples, channels), a.query),
        norms=allocate((sizes.batch, 1 if a.joint else sizes.heads, 4, sizes.queries + sizes.keys), a.query),
    )
    of_keys, total = saved.norms[..., sizes.queries :], sizes.queries + sizes.keys
    inverse = None if a.temperature is None else a.temperature.float().reciprocal()

    with _on(a.query):
        groups = sizes.batch if a.joint else sizes.samples
        query_blocks, key_blocks = (-(-tokens // sizes.block.few) for tokens in (sizes.queries, sizes.keys))
        norms_kernel[((query_blocks + key_blocks) * groups,)](
            a.query, _strides(a.query), a.key, _strides(a.key), a.key_encoding, encoding_strides, inverse, saved.norms,
            sizes.queries, sizes.keys, sizes.heads, query_blocks, key_blocks, query_blocks * groups, a.eps, a.focusing_factor,
            channels, sizes.tiles["PAD_D"], sizes.block.few, **sizes.norm, **_LAUNCH,
        )  # fmt: skip

        splits, stretch = _split(sizes.keys, sizes.block.few, sizes.samples)
        contexts = allocate((splits, *samples, channels, value_channels), a.query)
        key_sums = allocate((splits, *samples, channels), a.query)
        keys_forward_kernel[(splits * sizes.samples,)](
            a.key, _strides(a.key), a.value, _strides(a.value), a.key_weights, a.key_encoding, encoding_strides, inverse,
            of_keys, total, contexts, key_sums,
            sizes.keys, sizes.heads, sizes.samples, splits, stretch, a.eps, a.focusing_factor,
            **sizes.tiles, BLOCK=sizes.block.few, **sizes.norm, **_LAUNCH,
        )  # fmt: skip
        means = _means(saved.context, a)
        _add_up(contexts, key_sums, means, saved.key_sum, None, sizes)

        out = _token_buffer(a.query, value_channels)
        with_convolution = _LAUNCH if sizes.narrow else _CROWDED
        blocks = -(-GROUP.value * sizes.groups(sizes.queries) // sizes.block.some)
        queries_forward_kernel[(blocks * sizes.samples,)](
            a.query, _strides(a.query), a.value, _strides(a.value), inverse, saved.norms, total, means, saved.key_sum,
            _taps(a.conv_weight), a.conv_bias, out, _strides(out),
            sizes.heads, blocks, *sizes.grid_of(sizes.queries), a.eps, a.focusing_factor,
            **sizes.tiles, BLOCK=sizes.block.some, **sizes.means, **sizes.norm, **sizes.convolution, **with_convolution,
        )  # fmt: skip
    return out, saved


def backward(grad: Tensor, a: Arguments, saved: Saved) -> tuple[Tensor, ...]:
    """Launch the backward kernels: see :func:`flatten_transformer.ops.fused.define_operator`.

    Returns:
        The gradients of query, key, value, temperature, conv_weight and conv_bias; empty ones for missing options.
    """
    sizes = _sizes(a)
    channels, value_channels = a.query.shape[3], a.value.shape[3]
    samples = (sizes.batch, sizes.heads)
    encoding_strides = (0, 0) if a.key_encoding is None else a.key_encoding.stride()[:2]
    of_keys, total = saved.norms[..., sizes.queries :], sizes.queries + sizes.keys
    of_query, of_key, of_value = (_token_buffer(x, x.shape[3]) for x in (a.query, a.key, a.value))
    query_blocks, key_blocks = (-(-tokens // sizes.block.some) for tokens in (sizes.queries, sizes.keys))
    grid_blocks = -(-GROUP.value * sizes.groups(sizes.keys) // sizes.block.some)
    from_queries, from_keys = sizes.batch * query_blocks, sizes.batch * key_blocks
    with_convolution, without_convolution = (_LAUNCH, _CROWDED) if sizes.narrow else (_CROWDED, _LAUNCH)
    means = _means(saved.context, a)
    inverse = None if a.temperature is None else a.temperature.float().reciprocal()

    with _on(a.query):
        splits, stretch = _split(sizes.queries, sizes.block.many, sizes.samples)
        of_means = allocate((splits, *samples, channels, value_channels), grad)
        of_shares = allocate((splits, *samples, channels), grad)
        of_queries = allocate((*samples, 3, sizes.queries), grad)
        context_backward_kernel[(splits * sizes.samples,)](
            a.query, _strides(a.query), inverse, saved.norms, total, means, saved.key_sum, grad, _strides(grad),
            of_means, of_shares, of_queries,
            sizes.queries, sizes.heads, sizes.samples, splits, stretch, a.eps, a.focusing_factor,
            **sizes.tiles, BLOCK=sizes.block.many, **sizes.means, **sizes.norm, **_LAUNCH,
        )  # fmt: skip
        pulls, numbers = torch.empty_like(means), allocate((2, *samples, channels), grad)
        _add_up(of_means, of_shares, pulls, numbers[0], numbers[1], sizes)

        parts = None if a.temperature is None else allocate((from_queries + from_keys, *a.temperature.shape), grad)
        queries_backward_kernel[(query_blocks * sizes.samples,)](
            a.query, _strides(a.query), inverse, saved.norms, total, means, saved.key_sum, grad, _strides(grad), of_queries,
            of_query, _strides(of_query), parts, sizes.queries, sizes.heads, query_blocks, a.eps, a.focusing_factor,
            **sizes.tiles, BLOCK=sizes.block.some, **sizes.means, **sizes.norm, **without_convolution,
        )  # fmt: skip

        totals = allocate((*samples, sizes.keys), grad)
        of_values = (
            a.key, _strides(a.key), a.value, _strides(a.value), a.key_weights, a.key_encoding, encoding_strides, inverse,
            of_keys, total, saved.key_sum, pulls, numbers[1], numbers[0],
        )  # fmt: skip
        values_backward_kernel[(grid_blocks * sizes.samples,)](
            *of_values, grad, _strides(grad), _taps(a.conv_weight), totals, of_value, _strides(of_value),
            sizes.keys, sizes.heads, grid_blocks, *sizes.grid_of(sizes.keys), a.eps, a.focusing_factor,
            **sizes.tiles, BLOCK=sizes.block.some, **sizes.means, **sizes.norm, **sizes.convolution, **with_convolution,
        )  # fmt: skip
        keys_backward_kernel[(key_blocks * sizes.samples,)](
            *of_values, totals, of_key, _strides(of_key), None if parts is None else parts[from_queries:],
            sizes.keys, sizes.heads, key_blocks, a.eps, a.focusing_factor,
            **sizes.tiles, BLOCK=sizes.block.some, **sizes.means, **sizes.norm, **without_convolution,
        )  # fmt: skip

        of_temperature = grad.new_empty(0) if a.temperature is None or parts is None else parts.sum(0).to(a.temperature.dtype)
        of_weight, of_bias = grad.new_empty(0), grad.new_empty(0)
        if a.conv_weight is not None:
            of_weight, of_all = _convolution_backward(grad, a, sizes)
            of_bias = of_bias if a.conv_bias is None else of_all.to(a.conv_bias.dtype, copy=True)
    return of_query, of_key, of_value, of_temperature, of_weight, of_bias


def _convolution_backward(grad: Tensor, a: Arguments, sizes: _Sizes) -> tuple[Tensor, Tensor]:
    """Return the gradients of conv_weight and conv_bias."""
    assert a.conv_weight is not None
    at_once = max(1, min(8, 256 // sizes.tiles["PAD_E"]))  # so few that the sums of all taps stay in registers
    splits, stretch = _split(sizes.groups(sizes.keys), at_once, sizes.samples)
    taps = allocate((splits * sizes.samples, a.conv_weight[0].numel() + 1, a.value.shape[3]), grad)
    convolution_backward_kernel[(splits * sizes.samples,)](
        a.value, _strides(a.value), grad, _strides(grad), taps, sizes.heads, splits, stretch, *sizes.grid_of(sizes.keys),
        a.value.shape[3], sizes.tiles["PAD_E"], at_once, **sizes.convolution, **_LAUNCH,
    )  # fmt: skip
    summed = taps.sum(0)  # [K + 1, E]
    of_weight = torch.empty_like(a.conv_weight)  # laid out as PyTorch is told it will be
    of_weight.flatten(1).copy_(summed[:-1].t())
    return of_weight, summed[-1]


def _add_up(products: Tensor, shares: Tensor, means: Tensor, sums: Tensor, row_sizes: Tensor | None, sizes: _Sizes) -> None:
    """Add up what the stretches made, over the first axis: see :func:`means_kernel`."""
    splits, _, _, channels, value_channels = products.shape
    means_kernel[(sizes.samples, -(-channels // _MEANS_ROWS))](
        products, shares, means, sums, row_sizes, splits, channels, value_channels,
        sizes.tiles["PAD_E"], _MEANS_ROWS, **sizes.means, **_LAUNCH,
    )  # fmt: skip


def _taps(conv_weight: Tensor | None) -> Tensor | None:
    """Return the kernels as ``[K, E]``, so that neighbouring channels lie side by side."""
    return None if conv_weight is None else conv_weight.flatten(1).t().contiguous()


def _means(context: Tensor, a: Arguments) -> Tensor:
    """Return the buffer of the context as the kernels fill it: in half precision with means and what rounding cut off."""
    return context if _mixed_or_single(a) else context.view(a.value.dtype)


def _mixed_or_single(a: Arguments) -> bool:
    return len({a.query.dtype, a.key.dtype, a.value.dtype}) > 1 or a.value.dtype == torch.float32


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
    single = _mixed_or_single(a)
    kernel_height, kernel_width = (0, 0) if a.conv_weight is None else a.conv_weight.shape[2:]
    return _Sizes(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        tiles={
            "D": channels,
            "E": value_channels,
            "PAD_D": padded,
            "PAD_E": value_padded,
        },
        block=_blocks(max(padded, value_padded), single),
        means={"PARTS": 1 if single else 2},
        norm={"WHOLE": _whole(a.focusing_factor), "JOINT": a.joint},
        convolution={"KERNEL_HEIGHT": kernel_height, "KERNEL_WIDTH": kernel_width},
        grid=None if a.conv_weight is None else (keys - math.prod(a.grid_size), *a.grid_size),  # type: ignore[arg-type]
    )


def _blocks(widest: int, single: bool) -> _Blocks:
    if single:  # products of float32 take their operands from registers
        return _Blocks(*[32 if widest <= 32 else 16] * 3)
    return _Blocks(few=min(64, 2048 // widest), some=min(64, 4096 // widest), many=min(128, 4096 // widest))


def _split(tokens: int, block: int, programs: int) -> tuple[int, int]:
    """Return into how many stretches to cut the tokens of each of ``programs`` heads, and the length of one: whole blocks."""
    wanted = max(min(-(-_WANTED_PROGRAMS // programs), -(-tokens // _SHORTEST)), -(-tokens // _LONGEST), 1)
    stretch = block * -(-max(tokens, 1) // (block * wanted))
    return max(1, -(-tokens // stretch)), stretch


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
