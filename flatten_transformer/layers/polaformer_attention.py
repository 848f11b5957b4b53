"""Polarity-aware attention as a module: learned powers, and a gate on the output."""

# B batch, N queries, M keys, C channels = H heads × D channels per head.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatten_transformer.layers.attention import GridAttention
from flatten_transformer.layers.layout import Layout
from flatten_transformer.layers.rank_restoration import Stretch
from flatten_transformer.ops import peers
from flatten_transformer.ops.peers import reference


class PolaFormerAttention(GridAttention):
    """Polarity-aware linear attention (PolaFormer, arXiv 2501.15061), with all that its release puts around it.

    ``gate(x) ⊙ (attention + DWC(v))`` with key encoding and temperature as in FLatten, and powers
    ``1 + alpha · sigmoid(power)``, learned for each channel of each head. In the released code the projection of the
    gate is one matrix with that of the queries; here it is ``g``, so that ``qkv`` is that of the other attentions.
    Where a host gives a branch a share of the channels (CSwin's stripes), the gate sees those channels alone.

    Args:
        alpha: Largest power, less 1; positive.
        gated: Multiply the output by a projection of the tokens.
        dim: As every other argument: see :class:`~flatten_transformer.layers.core.AttentionCore`.
        num_heads: Likewise.
        grid_size: Likewise.
        kernel_size: Likewise.
        num_prefix_tokens: Likewise.
        key_encoding: Likewise.
        temperature: Likewise.
        rank_restoration: Likewise.
        stretch: Likewise.
        device: Likewise.
        dtype: Likewise.

    Raises:
        ValueError: If a head has an odd number of channels: it needs two halves.

    Example:
        >>> from flatten_transformer.layers import create_attention
        >>> create_attention("polaformer", dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        alpha: float = 4.0,
        gated: bool = True,
        kernel_size: int = 5,
        num_prefix_tokens: int = 0,
        key_encoding: bool = True,
        temperature: bool = True,
        rank_restoration: bool = True,
        stretch: Stretch = "grid",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            grid_size,
            kernel_size=kernel_size,
            num_prefix_tokens=num_prefix_tokens,
            key_encoding=key_encoding,
            temperature=temperature,
            rank_restoration=rank_restoration,
            stretch=stretch,
            device=device,
            dtype=dtype,
        )
        if dim // num_heads % 2:
            raise ValueError(f"polaformer attention needs an even number of channels a head, got {dim} / {num_heads}")
        if not alpha > 0:
            raise ValueError(f"alpha must be positive: powers are 1 to 1 + alpha; got {alpha}")
        self.alpha = alpha
        self.power = nn.Parameter(torch.zeros(1, num_heads, 1, dim // num_heads, device=device, dtype=dtype))
        self.g = nn.Linear(dim, dim, device=device, dtype=dtype) if gated else None

    def reset_parameters(self) -> None:
        """Set the powers back as well."""
        super().reset_parameters()
        nn.init.zeros_(self.power)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return peers.polaformer_attention(q, k, v, layout.attn_mask, power=self._powers())

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, 2H, N, M]``: of the first and of the second half of each head's channels."""
        return reference.polaformer_matrix(q, k, layout.attn_mask, power=self._powers())

    def gate(self, x: Tensor | None) -> Tensor | None:
        """Return the projection that the output is multiplied by, ``[B, N, C]``."""
        if self.g is None:
            return None
        if x is None:
            raise ValueError("PolaFormer attention makes its gate of the tokens: pass x= to attend, or gated=False")
        gate: Tensor = self.g(x)
        return gate

    def _powers(self) -> Tensor:
        power = self.power if self.power.element_size() >= 4 else self.power.float()
        return 1 + self.alpha * power[0, :, 0].sigmoid()  # [H, D]
