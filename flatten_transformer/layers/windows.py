"""Windows on a token grid: split, padded where they overhang, and joined."""

# B batch, W windows of one grid, N tokens of one window, C channels.

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Windows(NamedTuple):
    """Division of a token grid into windows, row by row; the last ones are padded where they overhang.

    Args:
        grid_size: Height and width of the grid.
        window_size: Height and width of a window.
        shift: How far the grid is rolled up and left before it is split, less than its size; tokens wrap around.

    Example:
        >>> windows = Windows((5, 6), (4, 4))
        >>> x = torch.randn(2, 5, 6, 8)
        >>> tokens = windows.split(x)  # 2 images × 4 windows
        >>> tokens.shape
        torch.Size([8, 16, 8])
        >>> torch.equal(windows.join(tokens), x)
        True
    """

    grid_size: tuple[int, int]
    window_size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    def split(self, x: Tensor) -> Tensor:
        """Split ``[B, height, width, C]`` into ``[B·W, N, C]``, zeros where a window overhangs."""
        if self._is_whole():
            return x.flatten(1, 2)
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        down, right = self._overhang()
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        return self._cut(x)

    def join(self, tokens: Tensor) -> Tensor:
        """Join ``[B·W, N, C]`` into ``[B, height, width, C]``; padding is dropped."""
        if self._is_whole():
            return tokens.unflatten(1, self.grid_size)
        (height, width), (down, right) = self.grid_size, self._overhang()
        rows, columns = (height + down) // self.window_size[0], (width + right) // self.window_size[1]
        x = tokens.unflatten(1, self.window_size).unflatten(0, (-1, rows, columns))  # [B, rows, columns, h, w, C]
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if down or right:
            x = x[:, :height, :width]
        return x.roll(self.shift, (1, 2)) if any(self.shift) else x

    def key_mask(self, tokens: Tensor) -> Tensor | None:
        """Return which of ``tokens``, ``[B·W, N, C]``, are not padding: ``[B·W, 1, 1, N]``, True; None: all of them."""
        if not any(self._overhang()):
            return None
        inside = self._inside(tokens.device)
        return inside.repeat(tokens.shape[0] // inside.shape[0], 1)[:, None, None]

    def pair_mask(self, device: torch.device) -> Tensor | None:
        """Return which pairs of a window may attend, ``[W, N, N]`` (query, key); None: all of them.

        Padding is no key, and tokens that the shift brought together from opposite ends do not meet. A padded
        query attends to everything: its output is dropped, and a row without keys would be NaN.
        """
        padded, shifted = any(self._overhang()), any(self.shift)
        if not (padded or shifted):
            return None
        inside = self._inside(device)
        allowed = inside[:, None, :].expand(-1, inside.shape[1], -1)
        if shifted:
            rows, columns = (
                torch.arange(size + over, device=device) >= size - shift
                for size, over, shift in zip(self.grid_size, self._overhang(), self.shift, strict=True)
            )
            side = self._cut((2 * rows[:, None] + columns[None, :].long())[None, :, :, None])[:, :, 0]
            allowed = allowed & ((side[:, :, None] == side[:, None, :]) | ~inside[:, :, None])
        return allowed

    def _is_whole(self) -> bool:
        """Return whether one window is the whole grid: a shortcut, as free sizes are costly to divide when compiling."""
        return self.window_size == self.grid_size and not any(self.shift)

    def _overhang(self) -> tuple[int, int]:
        if self._is_whole():
            return 0, 0
        (height, width), (window_height, window_width) = self.grid_size, self.window_size
        return -height % window_height, -width % window_width

    def _inside(self, device: torch.device) -> Tensor:
        """Return where tokens are no padding, ``[W, N]``."""
        down, right = self._overhang()
        whole = torch.ones(1, *self.grid_size, 1, dtype=torch.bool, device=device)
        return self._cut(F.pad(whole, (0, 0, 0, right, 0, down)))[:, :, 0]

    def _cut(self, x: Tensor) -> Tensor:
        height, width = self.window_size
        x = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))  # [B, rows, h, columns, w, C]
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)
