"""What every backend demands of its input, said once, in words a user can act on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["joint", "per_head"]


def shape_of(tensor: Tensor) -> list[int]:
    """Return the shape as a plain list, short in messages: ``[2, 3, 196, 64]``."""
    return list(tensor.shape)


def check_focusing_factor(focusing_factor: float) -> None:
    """Raise ValueError unless the power is one the paper's analysis covers (p ≥ 1)."""
    if not 1 <= focusing_factor < float("inf"):
        raise ValueError(
            f"focusing_factor must be a finite number of at least 1, got {focusing_factor}: "
            "3 is the paper's choice, 1 switches focusing off"
        )


def check_norm(norm: str) -> None:
    """Raise ValueError unless ``norm`` names one of the two norms."""
    if norm not in ("joint", "per_head"):
        raise ValueError(f'norm must be "joint" (over all heads, as the official weights need) or "per_head", got {norm!r}')


def check_attention(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ValueError unless the three tensors fit: ``[B, H, N, D]``, ``[B, H, M, D]``, ``[B, H, M, E]``."""
    shapes = f"got query {shape_of(query)}, key {shape_of(key)}, value {shape_of(value)}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value must be [batch, heads, tokens, channels]; {shapes}")
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3] or query.shape[3] != key.shape[3]:
        raise ValueError(
            "query [B, H, N, D], key [B, H, M, D] and value [B, H, M, E] must agree in batch, heads, "
            f"key tokens M and key channels D; {shapes}"
        )
    if 0 in key.shape:
        raise ValueError(f"attention needs at least one sample, head, key token and channel; {shapes}")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}: call .float() on it")


def check_temperature(temperature: Tensor | None, heads: int, channels: int) -> None:
    """Raise ValueError unless the temperature is one number a channel of each head."""
    if temperature is not None and temperature.shape != (heads, channels):
        raise ValueError(f"temperature must be [heads, channels] = [{heads}, {channels}], got {shape_of(temperature)}")


def check_key_encoding(key_encoding: Tensor | None, key: Tensor) -> None:
    """Raise ValueError unless the encoding can be added to each sample's keys, ``[B, H, M, D]``."""
    if key_encoding is not None and key_encoding.shape != key.shape[1:]:
        wanted = f"[heads, keys, channels] = {shape_of(key)[1:]}, as one sample's keys"
        raise ValueError(f"key_encoding must be {wanted}; got {shape_of(key_encoding)}")


def check_convolution(
    conv_weight: Tensor | None, conv_bias: Tensor | None, grid_size: Sequence[int] | None, query: Tensor, value: Tensor
) -> None:
    """Raise ValueError unless the kernels fit the values ``[B, H, M, E]`` and their grid, and values lie where outputs do."""
    if conv_weight is None:
        if conv_bias is not None or grid_size is not None:
            raise ValueError("conv_bias and grid_size belong to a convolution: pass conv_weight too")
        return
    if grid_size is None or not 1 <= len(grid_size) <= 3:
        raise ValueError(f"conv_weight needs grid_size, one to three sizes such as (14, 14); got {grid_size}")
    kernel, channels = conv_weight.shape[2:], value.shape[3]
    if conv_weight.shape[:2] != (channels, 1) or len(kernel) != len(grid_size) or any(size % 2 == 0 for size in kernel):
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


def check_mask(attn_mask: Tensor | None, batch: int, keys: int) -> None:
    """Raise ValueError unless the mask leaves out whole keys, which is all linear attention can do."""
    if attn_mask is None:
        return
    wanted = f"pass a boolean mask of shape [batch, 1, 1, keys] = [{batch}, 1, 1, {keys}], True where a key takes part"
    if attn_mask.dtype != torch.bool:
        raise ValueError(f"attn_mask is {attn_mask.dtype}; {wanted}")
    if attn_mask.ndim != 4 or not _broadcasts(attn_mask.shape, (batch, 1, 1, keys)):
        raise ValueError(
            f"attn_mask is {shape_of(attn_mask)}: linear attention never forms the query × key matrix, so it can leave out "
            f"keys but not single query-key pairs; {wanted} (a [batch, keys] mask: mask[:, None, None, :])"
        )


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    # not `in`, which Dynamo of PyTorch 2.8 and 2.9 gets wrong for symbolic sizes
    return all(size == 1 or size == wanted for size, wanted in zip(shape, target, strict=True))
