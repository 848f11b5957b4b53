"""The backend ``"cpp"``: one compiled pass over the tokens each way, for CPUs. README.md holds the derivation."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from flatten_transformer.ops.checks import check_positive
from flatten_transformer.ops.cpp.build import Problem, load, unavailable, warn_if_off
from flatten_transformer.ops.fused import Arguments, Saved, define_operator
from flatten_transformer.ops.options import Options
from flatten_transformer.ops.precision import shift, sum_dtype

__all__ = ["attend", "warn_if_off", "why_not"]

_REFUSED = 2  # what the kernel returns for a temperature that is not positive


def why_not(query: Tensor, value: Tensor, options: Options) -> str | None:
    """Return the reason why the kernel cannot compute an attention of ``query`` and ``value``, or None."""
    if query.device.type != "cpu":
        return f"it is for CPUs, and the query is on {query.device}"
    if len(options.grid_size) > 2:
        return f"it convolves over one or two axes, grid_size is {options.grid_size}"
    return unavailable()


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: Options) -> Tensor:
    """Attend by the compiled kernel, half precision in float32; shapes as the public function's."""
    dtype = sum_dtype(query)
    return _attend(query.to(dtype), key.to(dtype), value.to(dtype), attn_mask, options).to(query.dtype)


def _forward(a: Arguments) -> tuple[Tensor, Saved]:
    out = _side_by_side(a.query, a.value.shape[3])
    context = a.query.new_empty(*a.query.shape[:2], a.query.shape[3], a.value.shape[3])
    key_sum = a.query.new_empty(*a.query.shape[:2], a.query.shape[3])
    _run("forward", a, out=out, context=context, key_sum=key_sum)
    norms = a.query.new_empty(a.query.shape[0], 1 if a.joint else a.query.shape[1], 0, a.query.shape[2] + a.key.shape[2])
    return out, Saved(context, key_sum, norms)


def _backward(grad: Tensor, a: Arguments, saved: Saved) -> tuple[Tensor, ...]:
    of_tokens = [_side_by_side(x, x.shape[3]) for x in (a.query, a.key, a.value)]
    of_options = [grad.new_empty(0) if x is None else x.new_empty(x.shape) for x in (a.temperature, a.conv_weight, a.conv_bias)]
    names = ("query", "key", "value", "temperature", "weight", "bias")
    gradients = dict(zip((f"grad_{name}" for name in names), (*of_tokens, *of_options), strict=True))
    _run("backward", a, grad=grad, context=saved.context, key_sum=saved.key_sum, **gradients)
    return (*of_tokens, *of_options)


_attend = define_operator("cpp_attention", _forward, _backward, norm_numbers=0)


def _run(direction: str, a: Arguments, **others: Tensor) -> None:
    """Lay out the arguments as the kernel wants them and run it."""
    tensors = {name: x for name, x in {**a._asdict(), **others}.items() if isinstance(x, Tensor) and x.numel()}
    batch, heads, queries, channels = a.query.shape
    height, width = a.grid_size or (0, 0)
    kernel_height, kernel_width = (0, 0) if a.conv_weight is None else a.conv_weight.shape[2:]
    problem = Problem(
        **{name: x.data_ptr() for name, x in tensors.items()},
        **{f"{name}_strides": tensors[name].stride()[:3] for name in ("query", "key", "value")},
        encoding_strides=(0, 0) if a.key_encoding is None else a.key_encoding.stride()[:2],
        batch=batch,
        heads=heads,
        queries=queries,
        keys=a.key.shape[2],
        channels=channels,
        value_channels=a.value.shape[3],
        height=height,
        width=width,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        joint=a.joint,
        threads=torch.get_num_threads(),
        focusing_factor=a.focusing_factor,
        eps=a.eps,
        shift=shift(a.eps),
    )
    failed = load().functions[direction, a.query.dtype](ctypes.byref(problem))
    if failed == _REFUSED and a.temperature is not None:
        check_positive(a.temperature)
    if failed:
        sizes = f"query {tuple(a.query.shape)}, key {tuple(a.key.shape)} and value {tuple(a.value.shape)}"
        raise torch.OutOfMemoryError(f"out of memory in the kernel of attention, {direction}, for {sizes}: take smaller batches")


def _side_by_side(like: Tensor, channels: int) -> Tensor:
    """Return an empty ``[B, H, N, channels]`` whose heads lie side by side in memory."""
    batch, heads, tokens, _ = like.shape
    return like.new_empty(batch, tokens, heads, channels).transpose(1, 2)
