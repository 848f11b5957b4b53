"""Arguments of one attention, and the checks that every backend relies on."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flatten_transformer.ops.precision import sum_dtype

Norm = Literal["joint", "per_head"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LARGEST_POWER = 2**16


class Arguments(NamedTuple):
    """The arguments of one attention, from the public function to the kernels.

    The schemas of the operators and the fields of the compiled kernel's ``Problem`` are derived from these annotations:
    tensors first, then settings.
    """

    query: Tensor  # [B, H, N, D]
    key: Tensor  # [B, H, M, D], zero where masked
    value: Tensor  # [B, H, M, E], zero where masked
    key_weights: Tensor | None = None  # [B, M], the share of each key in the mean over keys; kernels get it for a mask
    key_encoding: Tensor | None = None  # [H, M, D]
    temperature: Tensor | None = None  # [H, D]
    conv_weight: Tensor | None = None  # [E, 1, *kernel]
    conv_bias: Tensor | None = None  # [E]
    grid_size: Sequence[int] = ()  # of the convolved tokens; empty without a convolution
    focusing_factor: float = 3.0
    joint: bool = True  # norms over all heads
    eps: float = 1e-6

    @property
    def norm(self) -> Norm:
        """The norm by its public name."""
        return "joint" if self.joint else "per_head"


def shape_of(tensor: Tensor) -> list[int]:
    """Return the shape as a plain list, short in messages: ``[2, 3, 196, 64]``."""
    return list(tensor.shape)


def check_focusing_factor(focusing_factor: float) -> None:
    """Raise ValueError unless the paper's analysis covers the power (p ≥ 1) and float32 can compute it.

    A power multiplies the rounding error of its base, 2⁻²⁴: at 2¹⁶ features are as coarse as bfloat16. Above, they soon
    become noise, where all but the largest channel is zero anyway.
    """
    if not _is_number(focusing_factor) or not 1 <= focusing_factor <= LARGEST_POWER:
        raise ValueError(
            f"focusing_factor must be a number of at least 1 and at most {LARGEST_POWER}, got {focusing_factor!r}: "
            "3 is the paper's choice, 1 switches focusing off"
        )


def check_eps(eps: float, dtype: torch.dtype) -> None:
    """Raise ValueError unless ``eps`` is positive and far enough inside the range of the dtype of sums."""
    smallest = 1e-290 if dtype == torch.float64 else 1e-30
    if not _is_number(eps) or not eps > 0:
        raise ValueError(f"eps must be positive, got {eps!r}: a token with no positive channel needs it")
    if not smallest <= eps <= 1 / smallest:
        raise ValueError(f"eps must lie between {smallest} and {1 / smallest} where sums run in {dtype}, got {eps!r}")


def _is_number(x: object) -> bool:
    # the last three: traced numbers and sizes, and NumPy's
    return isinstance(x, (int, float, torch.SymFloat, torch.SymInt, Real)) and not isinstance(x, bool)


def is_grid(grid_size: object) -> bool:
    """Return whether this is one to three positive whole sizes.

    Example:
        >>> is_grid((14, 14)), is_grid((14, 0)), is_grid((1.5,)), is_grid("ab")
        (True, False, False, False)
    """
    return isinstance(grid_size, (tuple, list, Sequence)) and 1 <= len(grid_size) <= 3 and all(map(_is_size, grid_size))


def _is_size(size: Any) -> bool:
    return isinstance(size, (int, torch.SymInt, Integral)) and not isinstance(size, bool) and bool(size >= 1)  # type: ignore[operator]


def check_norm(norm: str) -> None:
    """Raise ValueError unless ``norm`` names one of the two norms."""
    if norm not in ("joint", "per_head"):
        raise ValueError(f'norm must be "joint" (over all heads, as the official weights need) or "per_head", got {norm!r}')


def check_attention(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ValueError unless the three tensors fit: ``[B, H, N, D]``, ``[B, H, M, D]``, ``[B, H, M, E]``."""
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value must be [batch, heads, tokens, channels]; {_shapes(query, key, value)}")
    (batch, heads, _, channels), (_, _, keys, outputs) = query.shape, value.shape
    if key.shape != (batch, heads, keys, channels) or value.shape != (batch, heads, keys, outputs):
        raise ValueError(
            "query [B, H, N, D], key [B, H, M, D] and value [B, H, M, E] must agree in batch, heads, "
            f"key tokens M and key channels D; {_shapes(query, key, value)}"
        )
    check_tokens(query, key, value)


def _shapes(query: Tensor, key: Tensor, value: Tensor) -> str:
    return f"got query {shape_of(query)}, key {shape_of(key)}, value {shape_of(value)}"


def check_tokens(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ValueError unless the three are dense tensors of one floating dtype, on one device."""
    if (
        query.dtype in DTYPES
        and query.dtype == key.dtype == value.dtype
        and query.device == key.device == value.device
        and query.layout == key.layout == value.layout == torch.strided
    ):
        return  # the fast path: most calls are right
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} must be floating point, of at least 16 bits, got {tensor.dtype}: call .float() on it")
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name} is {tensor.dtype} and query {query.dtype}: they must have one dtype, call .to(query.dtype)")
        _check_place(name, tensor, query)


def check_options(a: Arguments) -> None:
    """Raise ValueError unless every option fits the tokens; a convolution has :func:`check_convolution`."""
    check_focusing_factor(a.focusing_factor)
    check_temperature(a.temperature, a.query)
    check_eps(a.eps, sum_dtype(a.query))
    check_key_encoding(a.key_encoding, a.key)


def check_option(name: str, tensor: Tensor | None, query: Tensor) -> None:
    """Raise ValueError unless an option tensor lies on the query's device and is no finer than the sums."""
    if tensor is None or (tensor.dtype == query.dtype and tensor.device == query.device and tensor.layout == torch.strided):
        return
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} must be floating point, of at least 16 bits, got {tensor.dtype}: call .float() on it")
    if tensor.dtype == torch.float64 != query.dtype:
        raise ValueError(f"{name} is torch.float64, finer than the sums over a {query.dtype} query: call .float() on it")
    _check_place(name, tensor, query)


def _check_place(name: str, tensor: Tensor, query: Tensor) -> None:
    if tensor.device != query.device:
        raise ValueError(f"{name} is on {tensor.device} and query on {query.device}: call .to(query.device) on it")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} is a {tensor.layout} tensor, attention takes torch.strided ones: call .to_dense() on it")


def check_temperature(temperature: Tensor | None, query: Tensor) -> None:
    """Raise ValueError unless there is one number a channel of each head of ``[B, H, N, D]``."""
    if temperature is not None and temperature.shape != (query.shape[1], query.shape[3]):
        expected = f"[{query.shape[1]}, {query.shape[3]}]"
        raise ValueError(f"temperature must be [heads, channels] = {expected}, got {shape_of(temperature)}")
    check_option("temperature", temperature, query)


def check_positive(temperature: Tensor) -> None:
    """Raise ValueError unless every temperature ``[H, D]`` is positive and has a finite reciprocal."""
    smallest = torch.finfo(torch.float32).tiny
    low, high = (float(x) for x in temperature.detach().aminmax())
    if not (low >= smallest and high <= 1 / smallest):
        raise ValueError(
            f"temperature must lie between {smallest:.0e} and {1 / smallest:.0e}, got numbers from {low} to {high}: it divides"
        )


def check_key_encoding(key_encoding: Tensor | None, key: Tensor) -> None:
    """Raise ValueError unless the encoding can be added to each sample's keys, ``[B, H, M, D]``."""
    if key_encoding is not None and key_encoding.shape != key.shape[1:]:
        expected = f"[heads, keys, channels] = {shape_of(key)[1:]}, as one sample's keys"
        raise ValueError(f"key_encoding must be {expected}; got {shape_of(key_encoding)}")
    check_option("key_encoding", key_encoding, key)


def check_convolution(
    conv_weight: Tensor | None, conv_bias: Tensor | None, grid_size: Sequence[int] | None, query: Tensor, value: Tensor
) -> None:
    """Raise ValueError unless the kernels fit the values ``[B, H, M, E]`` and their grid, with one query for each value."""
    if conv_weight is None:
        if conv_bias is not None or grid_size is not None:
            raise ValueError("conv_bias and grid_size belong to a convolution: pass conv_weight too")
        return
    if grid_size is None or not is_grid(grid_size):
        raise ValueError(f"conv_weight needs grid_size, one to three positive sizes such as (14, 14); got {grid_size!r}")
    channels = value.shape[3]
    filters, inputs, *kernel = conv_weight.shape if conv_weight.ndim > 1 else (0, 0)
    if filters != channels or inputs != 1 or len(kernel) != len(grid_size) or not all(size % 2 for size in kernel):
        raise ValueError(
            f"conv_weight must be [{channels}, 1, odd side for each of {len(grid_size)} axes], got {shape_of(conv_weight)}"
        )
    if conv_bias is not None and conv_bias.shape != (channels,):
        raise ValueError(f"conv_bias must be [{channels}], got {shape_of(conv_bias)}")
    if query.shape[2] != value.shape[2] or math.prod(grid_size) > value.shape[2]:
        raise ValueError(
            f"the convolution adds the values of a grid to its own outputs: grid_size {tuple(grid_size)} has "
            f"{math.prod(grid_size)} tokens, there are {query.shape[2]} queries and {value.shape[2]} values"
        )
    check_option("conv_weight", conv_weight, query)
    check_option("conv_bias", conv_bias, query)


def check_mask(attn_mask: Tensor | None, key: Tensor) -> None:
    """Raise ValueError unless the mask drops whole keys of ``[B, H, M, D]``, all that linear attention can do."""
    if attn_mask is None:
        return
    batch, keys = key.shape[0], key.shape[2]
    cure = f"pass a boolean mask of shape [batch, 1, 1, keys] = [{batch}, 1, 1, {keys}], True where a key takes part"
    if attn_mask.dtype != torch.bool:
        raise ValueError(f"attn_mask is {attn_mask.dtype}; {cure}")
    if attn_mask.ndim != 4 or not _broadcasts(attn_mask.shape, (batch, 1, 1, keys)):
        raise ValueError(
            f"attn_mask is {shape_of(attn_mask)}: linear attention never forms the query × key matrix, so it can leave out "
            f"keys but not single query-key pairs; {cure} (a [batch, keys] mask: mask[:, None, None, :])"
        )
    _check_place("attn_mask", attn_mask, key)


def check_order(is_causal: bool) -> None:
    """Raise ValueError if tokens shall attend to earlier ones alone."""
    if is_causal:
        raise ValueError("an image has no causal order: leave is_causal out, or keep softmax attention in this place")


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    # not `in`, which Dynamo in PyTorch 2.8 and 2.9 gets wrong for symbolic sizes
    return all(size == 1 or size == other for size, other in zip(shape, target, strict=True))
