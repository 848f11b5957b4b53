"""The backend ``"cpp"``: one compiled pass over the tokens each way, for CPUs. README.md holds the derivation."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from flatten_transformer.ops.checks import Arguments, check_positive
from flatten_transformer.ops.cpp.build import NUMBERS, Problem, load, unavailable, warn_if_off
from flatten_transformer.ops.fused import GRADIENTS, Saved, define_operator, heads_side_by_side, new_gradients
from flatten_transformer.ops.precision import shift

__all__ = ["attend", "warn_if_off", "why_not"]

_REFUSED = 2  # the kernel's error code for a temperature that is not positive


def why_not(a: Arguments) -> str | None:
    """Return the reason why the kernel cannot compute this attention, or None."""
    if a.query.device.type != "cpu":
        return f"it is for CPUs, and the query is on {a.query.device}"
    if len(a.grid_size) > 2:
        return f"it convolves over one or two axes, grid_size is {a.grid_size}"
    return unavailable()


def _forward(a: Arguments, saved: Saved) -> Tensor:
    out = heads_side_by_side(a.query, a.value.shape[3])
    _run("forward", a, saved, out=out)
    return out


def _backward(grad: Tensor, a: Arguments, saved: Saved) -> tuple[Tensor, ...]:
    gradients = new_gradients(a)
    _run("backward", a, saved, grad=grad, **{f"grad_{name}": x for name, x in zip(GRADIENTS, gradients, strict=True)})
    return gradients


attend = define_operator("cpp_attention", _forward, _backward, norm_numbers=0)


def _run(direction: str, a: Arguments, saved: Saved, **others: Tensor) -> None:
    """Run the kernel on a ``Problem`` made of the arguments."""
    given = {**a._asdict(), **saved._asdict(), **others}
    tensors = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.numel()}
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
        threads=torch.get_num_threads(),
        shift=shift(a.eps),
        **{name: given[name] for name in NUMBERS},
    )
    failed = load().functions[direction, a.query.dtype](ctypes.byref(problem))
    if failed == _REFUSED and a.temperature is not None:
        check_positive(a.temperature)
    if failed:
        sizes = f"query {tuple(a.query.shape)}, key {tuple(a.key.shape)} and value {tuple(a.value.shape)}"
        raise torch.OutOfMemoryError(f"out of memory in the kernel of attention, {direction}, for {sizes}: take smaller batches")
