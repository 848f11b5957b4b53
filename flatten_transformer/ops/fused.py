"""Fused backends as PyTorch operators: one node for torch.compile, forward and backward, whatever computes them."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flatten_transformer.ops.options import Options

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Options], Tensor]

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? key_weights, Tensor? key_encoding, Tensor? temperature, "
    "Tensor? conv_weight, Tensor? conv_bias"
)
_SETTINGS = "SymInt[] grid_size, float focusing_factor, bool joint, float eps"
_FORWARD = f"({_INPUTS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad, {_INPUTS}, Tensor context, Tensor key_sum, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def define_operator(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Attend:
    """Make a backend of two kernels: registers ``flatten_transformer::<name>`` and ``…_backward`` with PyTorch.

    The kernels get tensors whose last axis is contiguous; masked keys and values are zero already.

    Args:
        name: Of the operator.
        forward: From query ``[B, H, N, D]``, key ``[B, H, M, D]``, value ``[B, H, M, E]``, key_weights ``[B, M]`` (the
            share of each key in the mean over keys, 0 where masked; None: 1/M), key_encoding ``[H, M, D]``, temperature
            ``[H, D]``, conv_weight ``[E, 1, height, width]``, conv_bias ``[E]``, grid_size (height, width), focusing_factor,
            joint and eps to the output ``[B, H, N, E]`` (heads side by side in memory: ``[B, N, H, E]``, transposed), the context
            ``Σ w_j φ(k_j)ᵀ v_j``, ``[B, H, D, E]``, and the weighted sum of the φ(k_j), ``[B, H, D]``, in the dtype of the sums.
        backward: From the gradient of the output, the same tensors, context and key_sum, and the same settings to the
            gradients of query, key, value (each as its tensor), temperature ``[H, D]``, conv_weight and conv_bias;
            without the option, the last three are empty tensors.

    Returns:
        The backend, as :func:`flatten_transformer.ops.dispatch.choose_backend` returns it.
    """
    operator = torch.library.custom_op(f"flatten_transformer::{name}", forward, mutates_args=(), schema=_FORWARD)
    gradient = torch.library.custom_op(f"flatten_transformer::{name}_backward", backward, mutates_args=(), schema=_BACKWARD)
    operator.register_fake(_fake_forward)
    gradient.register_fake(_fake_backward)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:8], *output[1:])
        ctx.settings = inputs[8:]
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 12
        tensors = ctx.saved_tensors
        of_query, of_key, of_value, *of_options = gradient(grad.contiguous(), *tensors, *ctx.settings)
        of_encoding = of_key.sum(0) if tensors[4] is not None else None
        kept = [one if tensor is not None else None for one, tensor in zip(of_options, tensors[5:8], strict=True)]
        return (of_query, of_key, of_value, None, of_encoding, *kept, None, None, None, None)

    operator.register_autograd(differentiate, setup_context=setup_context)

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, options: Options) -> Tensor:
        out, _, _ = operator(
            *(last_axis_contiguous(x) for x in (query, key, value)),
            key_weights(attn_mask, key),
            *(None if x is None else x.to(sum_dtype(query)).contiguous() for x in _tensors(options)),
            _planar(options.grid_size),
            float(options.focusing_factor),
            options.norm == "joint",
            options.eps,
        )
        return out

    return attend


def last_axis_contiguous(x: Tensor) -> Tensor:
    """Return ``x``, copied only if its last axis is strided: slices of a packed projection are read where they lie."""
    return x if x.stride(-1) == 1 else x.contiguous()


def key_weights(attn_mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Return the share of each key in the mean over a sample's keys, ``[B, M]``, or None where all have the same."""
    if attn_mask is None:
        return None
    kept = attn_mask.expand(key.shape[0], 1, 1, key.shape[2])[:, 0, 0].to(sum_dtype(key))
    return kept / kept.sum(dim=1, keepdim=True).clamp(min=1)


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that sums over ``x`` are kept in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _tensors(options: Options) -> tuple[Tensor | None, ...]:
    weight = options.conv_weight
    if weight is not None and weight.ndim == 3:  # one axis is a plane of one row
        weight = weight.unsqueeze(2)
    return options.key_encoding, options.temperature, weight, options.conv_bias


def _planar(grid_size: Sequence[int]) -> Sequence[int]:
    return (1, *grid_size) if len(grid_size) == 1 else grid_size


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, channels = query.shape
    dtype = sum_dtype(query)
    out = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    context = query.new_empty(batch, heads, channels, value.shape[3], dtype=dtype)
    return out, context, query.new_empty(batch, heads, channels, dtype=dtype)


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
    options = [grad.new_empty(0) if x is None else torch.empty_like(x) for x in (temperature, conv_weight, conv_bias)]
    return (*tokens, *options)
