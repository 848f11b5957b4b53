"""Which attention the linear blocks of a family have: chosen once, built wherever a block needs one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from flatten_transformer.layers import GridAttention, create_attention, create_attention_core
from flatten_transformer.layers.attention.registry import check_options
from flatten_transformer.ops.dispatch import Backend, check_backend


class AttentionChoice(NamedTuple):
    """An attention by name with its options, as a user has chosen it; by default focused linear attention.

    Example:
        >>> AttentionChoice("relu").layer(64, 2, (7, 7)).focusing_factor
        1.0
    """

    name: str = "focused"
    options: Mapping[str, Any] = {}

    def layer(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        sr_ratio: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **layout: Any,
    ) -> GridAttention:
        """Return one with projections; arguments as in :func:`flatten_transformer.layers.create_attention`."""
        return create_attention(
            self.name,
            dim,
            num_heads,
            grid_size,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            proj_drop=proj_drop,
            sr_ratio=sr_ratio,
            device=device,
            dtype=dtype,
            **layout,
            **self.options,
        )

    def core(self, dim: int, num_heads: int, grid_size: Sequence[int], **factory: Any) -> GridAttention:
        """Return one without projections, for hosts that keep their own."""
        return create_attention_core(self.name, dim, num_heads, grid_size, **factory, **self.options)


def choose_attention(
    attention: str,
    attention_args: Mapping[str, Any] | None,
    *,
    focusing_factor: float | None,
    kernel_size: int | None,
    backend: Backend | None,
) -> AttentionChoice:
    """Return the attention of a model's linear blocks, checked.

    Args:
        attention: One of :func:`flatten_transformer.layers.list_attentions`.
        attention_args: Its options.
        focusing_factor: An option by itself; None leaves the attention its own.
        kernel_size: Likewise.
        backend: Likewise.

    Raises:
        ValueError: If there is no such attention, it has no such option, or an option is given twice.

    Example:
        >>> choose_attention("focused", {"norm": "per_head"}, focusing_factor=4, kernel_size=None, backend=None).options
        {'norm': 'per_head', 'focusing_factor': 4}
    """
    check_backend(backend)
    options = dict(attention_args or {})
    named = {"focusing_factor": focusing_factor, "kernel_size": kernel_size, "backend": backend}
    for name, value in named.items():
        if value is None:
            continue
        if name in options:
            raise ValueError(f"{name} is {value!r} and, in attention_args, {options[name]!r}: give it once")
        options[name] = value
    taken = sorted(options.keys() & {"device", "dtype", "num_prefix_tokens"})
    if taken:
        raise ValueError(f"attention_args must not hold {', '.join(taken)}: the model says it; leave it out")
    check_options(attention, options)
    return AttentionChoice(attention, options)
