"""A convolution over patches, for maps of any size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchConv2d(nn.Conv2d):
    """A convolution over patches that do not overlap, for maps of any size.

    Args:
        in_channels: As in nn.Conv2d.
        out_channels: As in nn.Conv2d.
        patch_size: Side of a patch: kernel and stride.
        remainder: What happens right and bottom to rows and columns that fill no patch: ``"pad"`` fills them up with
            zeros, so that no pixel is lost; ``"drop"`` leaves them out as nn.Conv2d does, and pads only a map that is
            smaller than one patch.
        device: Where the parameters are made.
        dtype: Their dtype.

    Example:
        >>> PatchConv2d(3, 8, 4)(torch.rand(1, 3, 217, 333)).shape
        torch.Size([1, 8, 55, 84])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int,
        *,
        remainder: Literal["pad", "drop"] = "pad",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, patch_size, stride=patch_size, device=device, dtype=dtype)
        self.remainder = remainder

    def forward(self, image: Tensor) -> Tensor:
        """Return ``[B, out_channels, rows, columns]`` of ``[B, in_channels, height, width]``."""
        bottom, right = (self._padding(size) for size in image.shape[2:])
        # An exported graph with a free size must always pad; padding by nothing changes nothing.
        if torch.compiler.is_exporting() or bottom or right:
            image = F.pad(image, (0, right, 0, bottom))
        return super().forward(image)

    def _padding(self, size: int) -> int:
        patch = self.stride[0]
        if self.remainder == "drop":
            return patch - size if size < patch else 0  # not max(): a graph with a free size would keep it
        # not -size % patch: torch.compile cannot trace the modulo of a negative size that is free
        return (size + patch - 1) // patch * patch - size
