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
    tokens neither attend here nor are attended to. O(N·W·D) time, O(N·(W + D)) memory: neighbours are views, not copies.

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
        prefix, shape = num_prefix_tokens, (1, *grid_size)[-2:]
        window = (self.window if len(grid_size) > 1 else 1, self.window)
        query, key, value = (tokens[:, :, prefix:].unflatten(2, shape) for tokens in (q, k, v))
        takes_part = key.new_ones(1, 1, *shape, 1) if kept is None else kept[:, :, prefix:].unflatten(2, shape).to(key.dtype)
        near = torch.stack(_neighbours(takes_part, window))[..., 0] > 0.5
        scores = torch.stack([(query * neighbour).sum(-1) for neighbour in _neighbours(key, window)])
        scores = (scores / q.shape[3] ** 0.5).masked_fill(~near, torch.finfo(scores.dtype).min)
        weights = scores.softmax(0).masked_fill(~near, 0)  # [W, B, H, rows, columns]
        out = torch.zeros_like(value)
        for weight, neighbour in zip(weights, _neighbours(value, window), strict=True):
            out = out + weight[..., None] * neighbour
        return F.pad(self.gate * out.flatten(2, 3), (0, 0, prefix, 0))

    def extra_repr(self) -> str:
        """Show the window."""
        return f"window={self.window}"


def _neighbours(tokens: Tensor, window: tuple[int, int]) -> list[Tensor]:
    """Return the neighbours of each token of ``[B, H, rows, columns, D]``, zeros outside: W views of one padded map."""
    (rows, columns), (height, width) = tokens.shape[2:4], window
    padded = F.pad(tokens, (0, 0, width // 2, width // 2, height // 2, height // 2))
    return [padded[:, :, y : y + rows, x : x + columns] for y in range(height) for x in range(width)]
