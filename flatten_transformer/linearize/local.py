"""Exact softmax attention to the nearest tokens, beside a linear attention to all of them."""

# B batch, H heads, N tokens of the grid, D channels per head, W tokens of a neighbourhood.

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalSoftmax(nn.Module):
    """Softmax attention of every grid token to its neighbours, times a gate per head that starts at zero.

    T⁵ (arXiv 2605.02772) adds such windows of 3 and 5 to its linear students. Neighbours outside the grid take no part; prefix
    tokens neither attend here nor are attended to. Keys and values are copied once per neighbour: O(N·W) time and memory.

    Args:
        num_heads: Heads H.
        window: Side of the neighbourhood; odd.
        device: Device of the gate.
        dtype: Dtype of the gate.

    Raises:
        ValueError: If ``window`` is even.

    Example:
        >>> local = LocalSoftmax(num_heads=2, window=3)
        >>> q, k, v = torch.randn(3, 1, 2, 35, 8)
        >>> local(q, k, v, (5, 7)).abs().sum()  # the gate is closed
        tensor(0., grad_fn=<SumBackward0>)
    """

    def __init__(
        self, num_heads: int, window: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if isinstance(window, bool) or not isinstance(window, int) or window < 1 or window % 2 == 0:
            raise ValueError(f"local_window must be odd and positive, such as 3, got {window!r}")
        self.window = window
        self.gate = nn.Parameter(torch.zeros(num_heads, 1, 1, device=device, dtype=dtype))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, grid_size: Sequence[int], num_prefix_tokens: int = 0, kept: Tensor | None = None
    ) -> Tensor:
        """Return ``[B, H, N, D]``, zeros for prefix tokens.

        Args:
            q: Queries ``[B, H, N, D]``, prefix tokens first.
            k: Keys, like ``q``.
            v: Values, like ``q``.
            grid_size: One or two axes, the last fastest.
            num_prefix_tokens: Tokens before those of the grid.
            kept: Boolean ``[B, 1, N, 1]``, True where a key takes part; None: all.
        """
        prefix = num_prefix_tokens
        queries, keys, values = (tokens[:, :, prefix:] for tokens in (q, k, v))
        scores = (queries[..., None, :] * self._neighbours(keys, grid_size)).sum(-1) / q.shape[3] ** 0.5  # [B, H, N, W]
        inside = torch.ones_like(keys[:1, :1, :, :1]) if kept is None else kept[:, :, prefix:].to(keys.dtype)
        near = self._neighbours(inside, grid_size)[..., 0] > 0.5
        weights = scores.masked_fill(~near, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~near, 0)
        out = (weights[..., None] * self._neighbours(values, grid_size)).sum(-2)
        return F.pad(self.gate * out, (0, 0, prefix, 0))

    def _neighbours(self, tokens: Tensor, grid_size: Sequence[int]) -> Tensor:
        """Return the neighbours of each token, zeros outside the grid: ``[B, H, N, W, D]`` of ``[B, H, N, D]``."""
        batch, heads, _, channels = tokens.shape
        axes = len(grid_size)
        maps = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (1,) * (2 - axes) + tuple(grid_size))
        window = (1,) * (2 - axes) + (self.window,) * axes
        patches = F.unfold(maps, window, padding=tuple(side // 2 for side in window))  # [B·H, D·W, N]
        return patches.unflatten(1, (channels, -1)).permute(0, 3, 2, 1).unflatten(0, (batch, heads))

    def extra_repr(self) -> str:
        """Show the window."""
        return f"window={self.window}"
