"""InLine attention as a module: its local residual is a convolution whose kernels are predicted from the tokens."""

# B batch, N queries, M keys, C channels = H heads × D channels per head, T taps of a kernel.

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.layers.attention import GridAttention
from flatten_transformer.layers.layout import Layout
from flatten_transformer.layers.rank_restoration import Stretch, check_kernel_size
from flatten_transformer.ops import peers
from flatten_transformer.ops.peers import reference
from flatten_transformer.ops.rank_restoration import restore_rank


class InLineAttention(GridAttention):
    """InLine attention (arXiv 2412.06590) with its local residual.

    The residual convolves the values with a kernel for each channel and sample that an MLP, apart for each head,
    predicts from the mean of the tokens. The paper has kernels of 3 × 3. Padding is left out of the mean; in cross
    attention the mean is over the queries' tokens. Where a host gives a branch a share of the channels (CSwin's
    stripes), the mean has those channels alone.

    Args: as :class:`~flatten_transformer.layers.core.AttentionCore`, of which ``rank_restoration`` switches the residual.

    Example:
        >>> from flatten_transformer.layers import create_attention
        >>> create_attention("inline", dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        kernel_size: int = 3,
        num_prefix_tokens: int = 0,
        key_encoding: bool = False,
        temperature: bool = False,
        rank_restoration: bool = True,
        stretch: Stretch = "grid",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            grid_size,
            num_prefix_tokens=num_prefix_tokens,
            key_encoding=key_encoding,
            temperature=temperature,
            stretch=stretch,
            device=device,
            dtype=dtype,
        )
        check_kernel_size(kernel_size)
        self.kernel = (kernel_size,) * len(self.grid_size)
        self.residual: nn.Module | None = None
        if rank_restoration:
            taps = torch.Size(self.kernel).numel()
            self.residual = nn.Sequential(
                nn.Conv1d(dim, dim, 1, groups=num_heads, device=device, dtype=dtype),
                nn.GELU(),
                nn.Conv1d(dim, dim * taps, 1, groups=num_heads, device=device, dtype=dtype),
            )

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return peers.inline_attention(q, k, v, layout.attn_mask)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, M]``."""
        return reference.inline_matrix(q, k, layout.attn_mask)

    def restore(self, v: Tensor, layout: Layout, x: Tensor | None) -> Tensor | None:
        """Convolve the values ``[B, H, M, D]`` with the kernels of their sample, ``[B, N, C]``."""
        if self.residual is None:
            return None
        if x is None:
            raise ValueError("InLine attention predicts its kernels from the tokens: pass x= to attend")
        kernels = self.residual(_mean(x, layout.query_mask).unsqueeze(2))  # [B, C·T, 1]
        tokens = self._values_at_outputs(v, layout).permute(2, 0, 1, 3).flatten(1)  # [N, B·C]
        restored = restore_rank(tokens[None, None], kernels.reshape(-1, 1, *self.kernel), None, layout.grid_size)
        restored = restored[0, 0].unflatten(1, (x.shape[0], self.dim)).transpose(0, 1)  # [B, N, C]
        return F.pad(restored, (0, 0, self.num_prefix_tokens, 0))


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean token, ``[B, C]``, of those that are no padding."""
    if mask is None:
        return x.mean(dim=1)
    kept = mask[:, 0, 0, :, None]  # [B, N, 1]
    return x.masked_fill(~kept, 0).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
