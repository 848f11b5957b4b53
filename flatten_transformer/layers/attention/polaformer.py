"""Polarity-aware linear attention: Meng et al., "PolaFormer", ICLR 2025, arXiv 2501.15061."""

# B batch, H heads, N queries, M keys, C channels = H heads × D channels per head.

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn, relu
from typing_extensions import Unpack

from flatten_transformer.layers.attention.base import GridAttention, GridOptions
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.attention.rows import divide_rows
from flatten_transformer.ops.linear_attention import linear_attention


@register_attention("polaformer")
class PolaFormerAttention(GridAttention):
    """Attention in O(N + M) by products of the same sign for one half of the values, of opposite signs for the other.

    ArXiv 2501.15061: with ``x± = ReLU(±x)**power``, ``φ_same(q) = (q⁺, q⁻)``, ``φ_opposite(q) = (q⁻, q⁺)`` and
    ``φ(k) = (k⁺, k⁻)``, each half is linear attention normalised by its own sum. Powers above 5 of entries above a few
    thousand leave the range of float32.

    Everything else is as in the release: ``gate(x) ⊙ (attention + DWC(v))`` with key encoding and temperature as in
    FLatten, and powers ``1 + alpha · sigmoid(power)``, learned for each channel of each head. In the released code the
    projection of the gate is one matrix with that of the queries; here it is ``g``, so that ``qkv`` is as in the other
    attentions. Where a host gives a branch a share of the channels (CSwin's stripes), the gate sees those channels alone.

    Args:
        alpha: Largest power, less 1; positive.
        gated: Multiply the output by a projection of the tokens.
        dim, num_heads, grid_size, options: as :class:`GridAttention`.

    Raises:
        ValueError: If a head has an odd number of channels: it needs two halves.

    Example:
        >>> PolaFormerAttention(dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    defaults: ClassVar[GridOptions] = {"key_encoding": True, "temperature": True, "rank_restoration": True}
    own_modules = ("g",)
    g: nn.Linear | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        alpha: float = 4.0,
        gated: bool = True,
        **options: Unpack[GridOptions],
    ) -> None:
        super().__init__(dim, num_heads, grid_size, **options)
        if dim // num_heads % 2:
            raise ValueError(f"polaformer attention needs an even number of channels a head, got {dim} / {num_heads}")
        if not alpha > 0:
            raise ValueError(f"alpha must be positive: powers are 1 to 1 + alpha; got {alpha}")
        self.alpha = alpha
        device, dtype = options.get("device"), options.get("dtype")
        self.power = nn.Parameter(torch.zeros(1, num_heads, 1, dim // num_heads, device=device, dtype=dtype))
        if gated:
            self.g = nn.Linear(dim, dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Reset the powers too."""
        super().reset_parameters()
        nn.init.zeros_(self.power)

    def neutralize(self) -> None:
        """Let the gate be one, too."""
        super().neutralize()
        if self.g is not None:
            nn.init.zeros_(self.g.weight)
            nn.init.ones_(self.g.bias)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``: the first half of each head's channels weighed by same signs."""
        power = self._powers().to(q.dtype)[:, None, :]
        q_plus, q_minus, k_plus, k_minus = (relu(x) ** power for x in (q, -q, k, -k))
        keys = torch.cat([k_plus, k_minus], dim=3)  # [B, H, M, 2D]
        first, second = v.chunk(2, dim=3)
        same = linear_attention(torch.cat([q_plus, q_minus], dim=3), keys, first, layout.attn_mask)
        opposite = linear_attention(torch.cat([q_minus, q_plus], dim=3), keys, second, layout.attn_mask)
        return torch.cat([same, opposite], dim=3)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return the matrices of same and of opposite signs of each head in turn, ``[B, 2H, N, M]``."""
        power = self._powers()[:, None, :]
        q_plus, q_minus, k_plus, k_minus = (x.relu() ** power for x in (q, -q, k, -k))
        same = q_plus @ k_plus.transpose(2, 3) + q_minus @ k_minus.transpose(2, 3)
        opposite = q_minus @ k_plus.transpose(2, 3) + q_plus @ k_minus.transpose(2, 3)
        return torch.stack([divide_rows(x, layout.attn_mask) for x in (same, opposite)], dim=2).flatten(1, 2)

    @property
    def needs_tokens(self) -> bool:
        """Whether the tokens are needed."""
        return self.g is not None

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
