"""Fused backends as PyTorch operators: one node for torch.compile, forward and backward, whatever computes them."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from flatten_transformer.ops import linear_attention
from flatten_transformer.ops.checks import (
    check_attention,
    check_convolution,
    check_eps,
    check_focusing_factor,
    check_key_encoding,
    check_option,
    check_temperature,
    shape_of,
)
from flatten_transformer.ops.empty import is_empty
from flatten_transformer.ops.options import Options
from flatten_transformer.ops.precision import sum_dtype
from flatten_transformer.ops.transforms import transformed

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Options], Tensor]

Shape = Sequence[int]

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? key_weights, Tensor? key_encoding, Tensor? temperature, "
    "Tensor? conv_weight, Tensor? conv_bias"
)
_SETTINGS = "SymInt[] grid_size, float focusing_factor, bool joint, float eps"
_FORWARD = f"({_INPUTS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad, {_INPUTS}, Tensor context, Tensor key_sum, Tensor norms, {_SETTINGS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class Arguments(NamedTuple):
    """What a kernel is given: tensors whose last axis is contiguous, masked keys and values zero already."""

    query: Tensor  # [B, H, N, D]
    key: Tensor  # [B, H, M, D]
    value: Tensor  # [B, H, M, E]
    key_weights: Tensor | None  # [B, M], the share of each key in the mean over keys, 0 where masked; None: 1/M
    key_encoding: Tensor | None  # [H, M, D]
    temperature: Tensor | None  # [H, D]
    conv_weight: Tensor | None  # [E, 1, height, width]
    conv_bias: Tensor | None  # [E]
    grid_size: Sequence[int]  # height, width; empty without a convolution
    focusing_factor: float
    joint: bool  # norms over all heads
    eps: float


_TENSORS = 8  # of the arguments


class Saved(NamedTuple):
    """What a forward kernel keeps for the backward kernel, besides the arguments."""

    context: Tensor  # [B, H, D, E], in the dtype of the sums
    key_sum: Tensor  # [B, H, D], likewise
    norms: Tensor  # [B, 1 or H (norms of each head), numbers of a token, N + M], likewise


def define_operator(
    name: str,
    forward: Callable[[Arguments], tuple[Tensor, Saved]],
    backward: Callable[[Tensor, Arguments, Saved], tuple[Tensor, ...]],
    norm_numbers: int,
    *,
    widens: bool = False,
) -> Attend:
    """Make a backend of two kernels: registers ``flatten_transformer::<name>`` and ``…_backward`` with PyTorch.

    Args:
        name: Of the operator. A change of the schema or of what is saved needs a new one: PyTorch keeps compiled graphs on
            disk by the operators' names, and an older graph would call the newer backward.
        forward: Returns the output ``[B, H, N, E]`` (heads side by side in memory: ``[B, N, H, E]``, transposed), and what
            it saves, whose meaning is its own.
        backward: From the gradient of the output (laid out as the output), the arguments and what was saved, the gradients
            of query, key and value (laid out as the output), temperature ``[H, D]``, conv_weight and conv_bias; without
            the option, the last three are empty tensors.
        norm_numbers: How many numbers of each token are saved.
        widens: Whether the kernels take encoding, temperature and convolution in half precision too; else they get them in the
            dtype of the sums.

    Returns:
        The backend, as :func:`flatten_transformer.ops.dispatch.choose_backend` returns it.
    """

    def run_forward(*inputs: Any) -> tuple[Tensor, ...]:
        arguments = Arguments(*inputs)
        _check(arguments)
        if is_empty(arguments.query, arguments.key, arguments.value):
            return tuple(x.zero_() for x in _fake_forward(norm_numbers, *inputs))
        out, saved = forward(_laid_out(arguments))
        return (out, *saved)

    def run_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        saved = Saved(*inputs[_TENSORS : _TENSORS + len(Saved._fields)])
        arguments = Arguments(*inputs[:_TENSORS], *inputs[_TENSORS + len(saved) :])
        _check(arguments)
        _check_saved(grad, arguments, saved, norm_numbers)
        if is_empty(arguments.query, arguments.key, arguments.value):
            return tuple(x.zero_() for x in _fake_backward(grad, *arguments))
        return backward(_side_by_side(grad), _laid_out(arguments), Saved(*(x.contiguous() for x in saved)))

    operator = torch.library.custom_op(f"flatten_transformer::{name}", run_forward, mutates_args=(), schema=_FORWARD)
    gradient = torch.library.custom_op(f"flatten_transformer::{name}_backward", run_backward, mutates_args=(), schema=_BACKWARD)
    operator.register_fake(partial(_fake_forward, norm_numbers))
    gradient.register_fake(_fake_backward)

    register_flop_formula(getattr(torch.ops.flatten_transformer, name))(_count_forward)
    register_flop_formula(getattr(torch.ops.flatten_transformer, f"{name}_backward"))(_count_backward)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:_TENSORS], *output[1:])
        ctx.settings = inputs[_TENSORS:]
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(Arguments._fields)
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed(grad, *tensors):  # a gradient of which another is taken
            return _gradient_by_portable(grad, Arguments(*tensors[:_TENSORS], *ctx.settings), ctx.needs_input_grad)
        of_query, of_key, of_value, *of_options = gradient(grad, *tensors, *ctx.settings)
        of_encoding = of_key.sum(0) if tensors[4] is not None else None
        kept = [one if tensor is not None else None for one, tensor in zip(of_options, tensors[5:_TENSORS], strict=True)]
        return (of_query, of_key, of_value, None, of_encoding, *kept, None, None, None, None)

    operator.register_autograd(differentiate, setup_context=setup_context)

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: Options) -> Tensor:
        out, *_ = operator(
            *(query, key, value),
            key_weights(attn_mask, key),
            *_tensors(options, None if widens else sum_dtype(query)),
            _planar(options.grid_size),
            float(options.focusing_factor),
            options.norm == "joint",
            options.eps,
        )
        return out

    return attend


def _gradient_by_portable(grad: Tensor, a: Arguments, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return the gradient of every argument, or None where none is needed, as something that can be differentiated."""
    options = Options(
        *(a.focusing_factor, a.temperature, "joint" if a.joint else "per_head", a.eps),
        *(a.key_encoding, a.conv_weight, a.conv_bias, tuple(a.grid_size)),
    )
    mask = None if a.key_weights is None else (a.key_weights > 0)[:, None, None]
    wanted: list[Tensor] = [x for x, need in zip(a, needed, strict=True) if need]  # type: ignore[misc]
    once_more = torch.is_grad_enabled()
    with torch.enable_grad():
        out = linear_attention.attend(a.query, a.key, a.value, mask, options)
        gradients = iter(torch.autograd.grad(out, wanted, grad, create_graph=once_more, materialize_grads=True))
    return tuple(next(gradients) if need else None for need in needed)


def _check(a: Arguments) -> None:
    """Raise ValueError unless kernels may follow these pointers: an operator can be called by anybody, with anything."""
    check_attention(a.query, a.key, a.value)
    check_temperature(a.temperature, a.query)
    check_key_encoding(a.key_encoding, a.key)
    check_focusing_factor(a.focusing_factor)
    check_eps(a.eps, sum_dtype(a.query))
    check_convolution(a.conv_weight, a.conv_bias, a.grid_size or None, a.query, a.value)
    if a.key_weights is not None and a.key_weights.shape != (a.key.shape[0], a.key.shape[2]):
        raise ValueError(f"key_weights must be [batch, keys] of key {shape_of(a.key)}, got {shape_of(a.key_weights)}")
    check_option("key_weights", a.key_weights, a.query)


def _check_saved(grad: Tensor, a: Arguments, saved: Saved, norm_numbers: int) -> None:
    """Raise ValueError unless this is the gradient of an output of these arguments, and what its forward pass saved."""
    batch, heads, queries, channels = a.query.shape
    outputs = a.value.shape[3]
    dtype = sum_dtype(a.query)
    for name, tensor, wanted, shape in (
        ("grad", grad, a.query.dtype, (batch, heads, queries, outputs)),
        ("context", saved.context, dtype, (batch, heads, channels, outputs)),
        ("key_sum", saved.key_sum, dtype, (batch, heads, channels)),
        ("norms", saved.norms, dtype, (batch, 1 if a.joint else heads, norm_numbers, queries + a.key.shape[2])),
    ):
        if tensor.shape != shape or tensor.dtype != wanted or tensor.device != a.query.device:
            raise ValueError(
                f"{name} must be {list(shape)} of {wanted} on {a.query.device}, as the forward pass returned it; "
                f"got {shape_of(tensor)} of {tensor.dtype} on {tensor.device}"
            )


def _laid_out(a: Arguments) -> Arguments:
    """Return the arguments as the kernels want them: slices of a packed projection are read where they lie.

    This is done within the operator, where strides are true: those that a compiler predicts may be others.
    """
    return a._replace(
        query=_rows(a.query),
        key=_rows(a.key),
        value=_rows(a.value),
        key_encoding=None if a.key_encoding is None else _rows(a.key_encoding),
        key_weights=_whole(a.key_weights),
        temperature=_whole(a.temperature),
        conv_weight=_whole(a.conv_weight),
        conv_bias=_whole(a.conv_bias),
    )


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _whole(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _side_by_side(grad: Tensor) -> Tensor:
    """Return a gradient ``[B, H, N, E]`` with its heads side by side in memory, where it mostly lies so already."""
    return grad.transpose(1, 2).contiguous().transpose(1, 2)


def key_weights(attn_mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Return the share of each key in the mean over a sample's keys, ``[B, M]``, or None where all have the same."""
    if attn_mask is None:
        return None
    kept = attn_mask.expand(key.shape[0], 1, 1, key.shape[2])[:, 0, 0].to(sum_dtype(key))
    return kept / kept.sum(dim=1, keepdim=True).clamp(min=1)


def _tensors(options: Options, dtype: torch.dtype | None) -> Iterator[Tensor | None]:
    """Yield key_encoding, temperature, conv_weight and conv_bias, in ``dtype`` or as they are."""
    weight = options.conv_weight
    if weight is not None and weight.ndim == 3:  # one axis is a plane of one row
        weight = weight.unsqueeze(2)
    for x in (options.key_encoding, options.temperature, weight, options.conv_bias):
        yield x if x is None or dtype is None else x.to(dtype)


def _planar(grid_size: Sequence[int]) -> Sequence[int]:
    return (1, *grid_size) if len(grid_size) == 1 else grid_size


def _count_forward(query: Shape, key: Shape, value: Shape, *options: Any, out_shape: Any = None, **_: Any) -> int:
    """Count floating-point operations as PyTorch does those of the portable backend: products and convolution."""
    batch, heads, queries, channels = query
    products = (key[2] + queries) * channels * value[3] + queries * channels
    return 2 * batch * heads * (products + _taps(options) * value[2] * value[3])


def _count_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *options: Any, out_shape: Any = None, **_: Any) -> int:
    batch, heads, queries, channels = query
    products = (3 * queries + 2 * key[2]) * channels * value[3] + queries * channels  # one of them made again
    return 2 * batch * heads * (products + 2 * _taps(options) * value[2] * value[3])


def _taps(options: Sequence[Any]) -> int:
    conv_weight = options[3]  # after key_weights, key_encoding and temperature
    return 0 if conv_weight is None else math.prod(conv_weight[2:])


def _fake_forward(norm_numbers: int, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    batch, heads, queries, channels = query.shape
    groups = 1 if others[-2] else heads  # joint
    dtype = sum_dtype(query)
    out = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    context = query.new_empty(batch, heads, channels, value.shape[3], dtype=dtype)
    key_sum = query.new_empty(batch, heads, channels, dtype=dtype)
    return out, context, key_sum, query.new_empty(batch, groups, norm_numbers, queries + key.shape[2], dtype=dtype)


def _fake_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_weights: Tensor | None,
    key_encoding: Tensor | None,
    temperature: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    tokens = [x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (query, key, value)]
    options = [grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in (temperature, conv_weight, conv_bias)]
    return (*tokens, *options)
