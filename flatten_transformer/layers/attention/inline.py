"""InLine attention: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024."""

# B batch, H heads, N queries, M keys, C channels = H heads × D channels per head, T taps of a kernel.

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.layers.attention.base import GridAttention, GridOptions
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.attention.rows import count, hide, masked_mean
from flatten_transformer.layers.rank_restoration import check_kernel_size, zero_parameters
from flatten_transformer.ops.rank_restoration import restore_rank


@register_attention("inline")
class InLineAttention(GridAttention):
    """Attention in O(N + M), normalised by subtraction: ``Q (Kᵀ V) s/M + (1 - s Q · mean(K)) mean(V)``, s = 1/√D.

    ArXiv 2412.06590, eq. 5: the weight of key j is its product with the query, minus the mean of these products, plus
    1/M. Weights sum to 1 and may be negative; distinct queries have distinct weights, which division does not
    guarantee. φ is the identity and s/M the scale of the released code.

    Its rank restoration, here ``residual``, convolves the values with a kernel for each channel and sample that an MLP,
    apart for each head, predicts from the mean of the tokens. The paper has kernels of 3 × 3. Padding is left out of the
    mean; in cross attention the mean is over the queries' tokens. Where a host gives a branch a share of the channels
    (CSwin's stripes), the mean has those channels alone.

    Args: as :class:`GridAttention`.

    Example:
        >>> InLineAttention(dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    defaults: ClassVar[GridOptions] = {"kernel_size": 3, "rank_restoration": True}
    own_modules = ("residual",)
    residual: nn.Sequential | None
    kernel: tuple[int, ...]

    def _add_restoration(self, kernel_size: int, **factory: Any) -> None:
        check_kernel_size(kernel_size)
        self.kernel = (kernel_size,) * len(self.grid_size)
        dim, taps = self.dim, torch.Size(self.kernel).numel()
        self.residual = nn.Sequential(
            nn.Conv1d(dim, dim, 1, groups=self.num_heads, **factory),
            nn.GELU(),
            nn.Conv1d(dim, dim * taps, 1, groups=self.num_heads, **factory),
        )

    def neutralize(self) -> None:
        """Let the predicted kernels be zero."""
        if self.residual is not None:
            zero_parameters(self.residual[-1])

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        kept = layout.kept
        mean_key, mean_value = masked_mean(k, kept), masked_mean(v, kept)
        # (1 - s q·mean(k)) mean(v) + s q (kᵀv/M): the covariance of keys and values, which is small
        products = k.transpose(2, 3) @ v / ((k.shape[2] or 1) if kept is None else count(kept))
        covariance = products - mean_key.transpose(2, 3) * mean_value  # [B, H, D, D]
        return mean_value + q @ (covariance * (q.shape[3] or 1) ** -0.5)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return QKᵀ/(M√D), minus each row's mean, plus 1/M, ``[B, H, N, M]``; rows sum to 1 (eq. 5)."""
        mask = layout.attn_mask
        kept = k.shape[2] if mask is None else mask.sum(dim=3, keepdim=True).clamp(min=1)
        products = hide(q @ k.transpose(2, 3), mask) / q.shape[3] ** 0.5 / kept
        centred = products - products.sum(dim=3, keepdim=True) / kept
        return hide(centred + torch.ones_like(products) / kept, mask)

    @property
    def needs_tokens(self) -> bool:
        """Whether the tokens are needed."""
        return self.residual is not None

    def restore(self, v: Tensor, layout: Layout, x: Tensor | None) -> Tensor | None:
        """Convolve the values ``[B, H, M, D]`` with the kernels of their sample, ``[B, N, C]``."""
        if self.residual is None:
            return None
        if x is None:
            raise ValueError("InLine attention predicts its kernels from the tokens: pass x= to attend")
        mean = masked_mean(x[:, None], None if layout.query_mask is None else layout.query_mask.transpose(2, 3))
        kernels = self.residual(mean[:, 0].transpose(1, 2))  # [B, C·T, 1]
        tokens = self._values_at_outputs(v, layout).permute(2, 0, 1, 3).flatten(1)  # [N, B·C]
        restored = restore_rank(tokens[None, None], kernels.reshape(-1, 1, *self.kernel), None, layout.grid_size)
        restored = restored[0, 0].unflatten(1, (x.shape[0], self.dim)).transpose(0, 1)  # [B, N, C]
        return F.pad(restored, (0, 0, self.num_prefix_tokens, 0))
