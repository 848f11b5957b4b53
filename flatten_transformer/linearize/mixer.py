"""What stands between a host's queries, keys and values and its output projection, in the place of softmax."""

# B batch, H heads, N queries, M keys, D channels per head, C = H·D.

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatten_transformer.layers import GridAttention
from flatten_transformer.layers.attention.base import Projected
from flatten_transformer.layers.attention.layout import Layout, merge_heads
from flatten_transformer.layers.attention.rows import masked_mean
from flatten_transformer.layers.rank_restoration import convolve_values, depthwise_convolution, zero_parameters
from flatten_transformer.linearize.local import LocalSoftmax
from flatten_transformer.linearize.tokens import SeenGrid

_KERNEL = 3  # of the convolutions of queries and keys, as in T⁵


class LinearMixer(nn.Module):
    """Linear attention of queries, keys and values that a softmax model has projected.

    What is new starts at nothing: every convolution at zero, the gate of the local window closed. So the untrained mixer is
    the literal formula of its attention on the teacher's own queries, keys and values.

    Args:
        attention: The attention, built with ``projections=False``.
        seen: The grid of the image, where the host does not pass it.
        center_keys: Subtract the mean key. Softmax attention ignores a shift of all keys, so it is nothing to the teacher;
            linear attention does not. It helps features with signs (T⁵, arXiv 2605.02772), not those without.
        convolve_queries_keys: Add depthwise convolutions of queries and of keys to them (T⁵).
        local_window: Side of a :class:`~flatten_transformer.linearize.local.LocalSoftmax` beside the attention; None: none.
        device: Device of what is new here.
        dtype: Its dtype.

    Raises:
        ValueError: If ``local_window`` is even, or the grid has three axes.

    Example:
        >>> from flatten_transformer.layers import create_attention
        >>> mixer = LinearMixer(create_attention("focused", 32, 2, (5, 7), projections=False))
        >>> mixer(*torch.randn(3, 1, 2, 35, 16)).shape
        torch.Size([1, 35, 32])
    """

    def __init__(
        self,
        attention: GridAttention,
        seen: SeenGrid | None = None,
        *,
        center_keys: bool = False,
        convolve_queries_keys: bool = False,
        local_window: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.seen = SeenGrid(attention.grid_size) if seen is None else seen
        self.center_keys = center_keys
        self.dwc_q: nn.Module | None = None
        self.dwc_k: nn.Module | None = None
        self.local: LocalSoftmax | None = None
        axes = len(attention.grid_size)
        if convolve_queries_keys:
            self.dwc_q, self.dwc_k = (
                depthwise_convolution(attention.dim, _KERNEL, axes, device=device, dtype=dtype) for _ in range(2)
            )
        if local_window is not None:
            if axes > 2:
                raise ValueError(f"local_window takes grids of one or two axes, got {attention.grid_size}: leave it out")
            self.local = LocalSoftmax(attention.num_heads, local_window, device=device, dtype=dtype)
        attention.neutralize()
        for convolution in (self.dwc_q, self.dwc_k):
            if convolution is not None:
                zero_parameters(convolution)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *,
        x: Tensor | None = None,
        grid_size: Sequence[int] | None = None,
        context_grid_size: Sequence[int] | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: ``[B, H, N, D]``, prefix tokens first.
            key: ``[B, H, M, D]``.
            value: ``[B, H, M, D]``.
            attn_mask: Boolean ``[B, 1, 1, M]``, True where a key takes part.
            x: ``[B, N, C]``, the tokens before projection, for designs that use them.
            grid_size: The grid of the queries; None: that of the image.
            context_grid_size: The grid of the keys; None: that of the queries.

        Returns:
            The input of the output projection, ``[B, N, C]``.

        Raises:
            ValueError: If the tokens do not fit their grid, or the mask is of single query-key pairs.
        """
        grid = self._grid(query.shape[2]) if grid_size is None else grid_size
        layout = Layout(grid, grid if context_grid_size is None else context_grid_size, attn_mask, context_grid_size is not None)
        query, key, value = self.prepare(query, key, value, layout)
        out: Tensor = self.attention(Projected(merge_heads(query), merge_heads(key), merge_heads(value), layout, x))
        if self.local is None:
            return out
        near = self.local(query, key, value, grid, self.attention.num_prefix_tokens, layout.kept)
        return out + merge_heads(near)

    def prepare(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Centre the keys, and add the convolutions of queries and keys, all ``[B, H, tokens, D]``."""
        key, value = layout.hide(key, value)
        if self.center_keys:
            key = key - masked_mean(key, layout.kept)
        query = self._convolve(self.dwc_q, query, layout.grid_size)
        return query, self._convolve(self.dwc_k, key, layout.context_grid_size), value

    def _grid(self, count: int) -> Sequence[int]:
        """Return the grid of ``count`` tokens of self attention."""
        prefix = self.attention.num_prefix_tokens
        if len(self.attention.grid_size) == 1:
            return (count - prefix,)
        grid = self.seen.grid_size
        if not torch.compiler.is_compiling() and count != prefix + math.prod(grid):
            raise ValueError(
                f"the attention got {count} tokens; {prefix} prefix tokens and the grid {grid} make {prefix + math.prod(grid)}: "
                "pass num_prefix_tokens and grid_size to linearize, as the model has them"
            )
        return grid

    def _convolve(self, convolution: nn.Module | None, tokens: Tensor, grid_size: Sequence[int]) -> Tensor:
        """Add the convolution of the grid tokens of ``[B, H, N, D]``, one kernel for each of C channels."""
        if convolution is None:
            return tokens
        prefix, heads = self.attention.num_prefix_tokens, tokens.shape[1]
        grid = merge_heads(tokens)[:, None, prefix:]
        convolved = nn.functional.pad(convolve_values(convolution, grid, grid_size), (0, 0, prefix, 0))
        return tokens + convolved[:, 0].unflatten(2, (heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        """Show the options that no submodule shows."""
        return f"center_keys={self.center_keys}"
