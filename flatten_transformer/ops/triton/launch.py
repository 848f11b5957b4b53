"""Kernel launches: arguments, buffers, and sums over the partial results of the programs."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head, K taps of the convolution.

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.fused import Saved, heads_side_by_side
from flatten_transformer.ops.triton.convolution import GROUP, convolution_backward_kernel
from flatten_transformer.ops.triton.keys import keys_backward_kernel, keys_forward_kernel, values_backward_kernel
from flatten_transformer.ops.triton.norms import means_kernel, norms_kernel
from flatten_transformer.ops.triton.queries import context_backward_kernel, queries_backward_kernel, queries_forward_kernel
from flatten_transformer.ops.triton.sizes import Sizes, is_single, sizes_of, split

_MEANS_ROWS = 16
_LAUNCH: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
_CROWDED = _LAUNCH | ({"maxnreg": 128} if torch.version.cuda else {})  # so that four programs share a processor


class _Call(NamedTuple):
    """One attention, and the first arguments of all its kernels over the queries or over the keys."""

    a: Arguments
    sizes: Sizes
    saved: Saved
    queries: tuple[Any, ...]  # query, its strides, 1 / temperature, norms and how many tokens have some
    keys: tuple[Any, ...]  # key and value, their strides, weights, encoding, then as above

    @property
    def means(self) -> Tensor:
        """The buffer of the context as the kernels fill it: in half precision with means and their rounding residuals."""
        return self.saved.context if is_single(self.a) else self.saved.context.view(self.a.value.dtype)

    def new(self, *shape: int) -> Tensor:
        """Return a float32 buffer ``[*shape]``."""
        return self.a.query.new_empty(shape, dtype=torch.float32)


def forward(a: Arguments, saved: Saved) -> Tensor:
    """Launch the forward kernels: see :func:`flatten_transformer.ops.fused.define_operator`.

    Saves the means of the values in ``context``: in half precision two numbers side by side in the place of one.
    """
    call = _call(a, sizes_of(a), saved)
    with _on(a.query):
        _write_norms(call)
        _keys_forward(call)
        return _queries_forward(call)


def backward(grad: Tensor, a: Arguments, saved: Saved) -> tuple[Tensor, ...]:
    """Launch the backward kernels: see :func:`flatten_transformer.ops.fused.define_operator`.

    Returns:
        The gradients of query, key, value, temperature, conv_weight and conv_bias; empty ones for missing options.
    """
    call = _call(a, sizes_of(a), saved)
    with _on(a.query):
        from_queries, of_means = _context_backward(grad, call)
        parts, of_queries, of_keys = _temperature_parts(call)
        of_query = _queries_backward(grad, call, from_queries, of_queries)
        of_value, of_key = _keys_backward(grad, call, of_means, of_keys)
        of_temperature = grad.new_empty(0) if a.temperature is None else parts.sum(0).to(a.temperature.dtype)
        of_weight, of_bias = _convolution_backward(grad, call)
    return of_query, of_key, of_value, of_temperature, of_weight, of_bias


def _call(a: Arguments, sizes: Sizes, saved: Saved) -> _Call:
    inverse = None if a.temperature is None else a.temperature.float().reciprocal()
    encoding_strides = (0, 0) if a.key_encoding is None else a.key_encoding.stride()[:2]
    key_and_value = (a.key, _strides(a.key), a.value, _strides(a.value), a.key_weights, a.key_encoding, encoding_strides)
    tokens = sizes.queries + sizes.keys
    return _Call(
        a,
        sizes,
        saved,
        queries=(a.query, _strides(a.query), inverse, saved.norms, tokens),
        keys=(*key_and_value, inverse, saved.norms[..., sizes.queries :], tokens),
    )


def _write_norms(call: _Call) -> None:
    a, sizes = call.a, call.sizes
    groups = sizes.batch if a.joint else sizes.samples
    query_blocks, key_blocks = (-(-tokens // sizes.block.few) for tokens in (sizes.queries, sizes.keys))
    query, query_strides, inverse, norms, _ = call.queries
    key, key_strides, _, _, _, encoding, encoding_strides, *_ = call.keys
    norms_kernel[((query_blocks + key_blocks) * groups,)](
        query, query_strides, key, key_strides, encoding, encoding_strides, inverse, norms,
        sizes.queries, sizes.keys, sizes.heads, query_blocks, key_blocks, query_blocks * groups, a.eps, a.focusing_factor,
        sizes.tiles["D"], sizes.tiles["PAD_D"], sizes.block.few, **sizes.norm, **_LAUNCH,
    )  # fmt: skip


def _keys_forward(call: _Call) -> None:
    a, sizes = call.a, call.sizes
    splits, stretch = split(sizes.keys, sizes.block.few, sizes.samples)
    contexts, key_sums = call.new(splits, *call.saved.context.shape), call.new(splits, *call.saved.key_sum.shape)
    keys_forward_kernel[(splits * sizes.samples,)](
        *call.keys, contexts, key_sums,
        sizes.keys, sizes.heads, sizes.samples, splits, stretch, a.eps, a.focusing_factor,
        **sizes.tiles, BLOCK=sizes.block.few, **sizes.norm, **_LAUNCH,
    )  # fmt: skip
    _add_up(contexts, key_sums, call.means, call.saved.key_sum, None, sizes)


def _queries_forward(call: _Call) -> Tensor:
    a, sizes = call.a, call.sizes
    out = heads_side_by_side(a.query, a.value.shape[3])
    blocks = -(-GROUP.value * sizes.groups(sizes.queries) // sizes.block.some)
    queries_forward_kernel[(blocks * sizes.samples,)](
        *call.queries, a.value, _strides(a.value), call.means, call.saved.key_sum, _taps(a.conv_weight), a.conv_bias,
        out, _strides(out), sizes.heads, blocks, *sizes.grid_of(sizes.queries), a.eps, a.focusing_factor,
        **sizes.tiles, BLOCK=sizes.block.some, **sizes.means, **sizes.norm, **sizes.convolution,
        **(_LAUNCH if sizes.narrow else _CROWDED),
    )  # fmt: skip
    return out


def _context_backward(grad: Tensor, call: _Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return numbers of each query, and the gradient of the means: means_kernel's output, sizes of its rows, and shares."""
    a, sizes = call.a, call.sizes
    splits, stretch = split(sizes.queries, sizes.block.many, sizes.samples)
    products, shares = call.new(splits, *call.saved.context.shape), call.new(splits, *call.saved.key_sum.shape)
    numbers = call.new(sizes.batch, sizes.heads, 3, sizes.queries)
    context_backward_kernel[(splits * sizes.samples,)](
        *call.queries, call.means, call.saved.key_sum, grad, _strides(grad), products, shares, numbers,
        sizes.queries, sizes.heads, sizes.samples, splits, stretch, a.eps, a.focusing_factor,
        **sizes.tiles, BLOCK=sizes.block.many, **sizes.means, **sizes.norm, **_LAUNCH,
    )  # fmt: skip
    of_means, row_sizes, sums = torch.empty_like(call.means), *call.new(2, *call.saved.key_sum.shape).unbind(0)
    _add_up(products, shares, of_means, sums, row_sizes, sizes)
    return numbers, (of_means, row_sizes, sums)


def _queries_backward(grad: Tensor, call: _Call, from_queries: Tensor, of_temperature: Tensor | None) -> Tensor:
    a, sizes = call.a, call.sizes
    of_query = heads_side_by_side(a.query, a.query.shape[3])
    blocks = -(-sizes.queries // sizes.block.some)
    queries_backward_kernel[(blocks * sizes.samples,)](
        *call.queries, call.means, call.saved.key_sum, grad, _strides(grad), from_queries,
        of_query, _strides(of_query), of_temperature, sizes.queries, sizes.heads, blocks, a.eps, a.focusing_factor,
        **sizes.tiles, BLOCK=sizes.block.some, **sizes.means, **sizes.norm, **(_CROWDED if sizes.narrow else _LAUNCH),
    )  # fmt: skip
    return of_query


def _keys_backward(
    grad: Tensor, call: _Call, of_means: tuple[Tensor, ...], of_temperature: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of values and keys."""
    a, sizes = call.a, call.sizes
    of_key, of_value = (heads_side_by_side(x, x.shape[3]) for x in (a.key, a.value))
    totals = call.new(sizes.batch, sizes.heads, sizes.keys)
    blocks = -(-GROUP.value * sizes.groups(sizes.keys) // sizes.block.some)
    values_backward_kernel[(blocks * sizes.samples,)](
        *call.keys, call.saved.key_sum, *of_means, grad, _strides(grad), _taps(a.conv_weight), totals,
        of_value, _strides(of_value), sizes.keys, sizes.heads, blocks, *sizes.grid_of(sizes.keys), a.eps, a.focusing_factor,
        **sizes.tiles, BLOCK=sizes.block.some, **sizes.means, **sizes.norm, **sizes.convolution,
        **(_LAUNCH if sizes.narrow else _CROWDED),
    )  # fmt: skip
    blocks = -(-sizes.keys // sizes.block.some)
    keys_backward_kernel[(blocks * sizes.samples,)](
        *call.keys, call.saved.key_sum, *of_means, totals, of_key, _strides(of_key), of_temperature,
        sizes.keys, sizes.heads, blocks, a.eps, a.focusing_factor,
        **sizes.tiles, BLOCK=sizes.block.some, **sizes.means, **sizes.norm, **(_CROWDED if sizes.narrow else _LAUNCH),
    )  # fmt: skip
    return of_value, of_key


def _convolution_backward(grad: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """Return the gradients of conv_weight and conv_bias."""
    a, sizes = call.a, call.sizes
    if a.conv_weight is None:
        return grad.new_empty(0), grad.new_empty(0)
    splits, stretch = split(sizes.groups(sizes.keys), sizes.taps_at_once, sizes.samples)
    parts = call.new(splits * sizes.samples, a.conv_weight[0].numel() + 1, a.value.shape[3])
    convolution_backward_kernel[(splits * sizes.samples,)](
        a.value, _strides(a.value), grad, _strides(grad), parts, sizes.heads, splits, stretch, *sizes.grid_of(sizes.keys),
        sizes.tiles["E"], sizes.tiles["PAD_E"], sizes.taps_at_once, **sizes.convolution, **_LAUNCH,
    )  # fmt: skip
    summed = parts.sum(0)  # [K + 1, E]
    of_weight = a.conv_weight.new_empty(a.conv_weight.shape)
    of_weight.flatten(1).copy_(summed[:-1].t())
    return of_weight, grad.new_empty(0) if a.conv_bias is None else summed[-1].to(a.conv_bias.dtype, copy=True)


def _add_up(products: Tensor, shares: Tensor, means: Tensor, sums: Tensor, row_sizes: Tensor | None, sizes: Sizes) -> None:
    """Add up the partial results of the stretches over the first axis: see :func:`means_kernel`."""
    splits, _, _, channels, value_channels = products.shape
    means_kernel[(sizes.samples, -(-channels // _MEANS_ROWS))](
        products, shares, means, sums, row_sizes, splits, channels, value_channels,
        sizes.tiles["PAD_E"], _MEANS_ROWS, **sizes.means, **_LAUNCH,
    )  # fmt: skip


def _temperature_parts(call: _Call) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the buffer of the temperature's partial gradients, and its parts for programs over queries and over keys."""
    sizes, temperature = call.sizes, call.a.temperature
    if temperature is None:
        return call.new(0), None, None
    of_queries, of_keys = (sizes.batch * -(-tokens // sizes.block.some) for tokens in (sizes.queries, sizes.keys))
    parts = call.new(of_queries + of_keys, *temperature.shape)
    return parts, parts[:of_queries], parts[of_queries:]


def _taps(conv_weight: Tensor | None) -> Tensor | None:
    """Return the kernels as ``[K, E]``, so that neighbouring channels lie side by side."""
    return None if conv_weight is None else conv_weight.flatten(1).t().contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of batch, heads and tokens."""
    return x.stride(0), x.stride(1), x.stride(2)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Make the GPU of ``x`` the current one, which is where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
