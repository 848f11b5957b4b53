"""The attentions that focused linear attention is compared with: those that are a function of q, k and v alone.

Their formulas, sources and deviations stand with the functions in ``flatten_transformer.ops.peers``.
"""

# B batch, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

from torch import Tensor

from flatten_transformer.layers.attention import GridAttention
from flatten_transformer.layers.layout import Layout
from flatten_transformer.ops import peers
from flatten_transformer.ops.peers import reference


class EluAttention(GridAttention):
    """Linear attention with φ = elu + 1 (arXiv 2006.16236); arguments as GridAttention."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return peers.elu_attention(q, k, v, layout.attn_mask)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, M]``."""
        return reference.elu_matrix(q, k, layout.attn_mask)


class HydraAttention(GridAttention):
    """Hydra attention (arXiv 2209.07484): each channel is a head, so ``num_heads`` changes nothing but ``dwc``."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return peers.hydra_attention(q, k, v, layout.attn_mask)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H·D, N, M]``: one matrix a channel."""
        return reference.hydra_matrix(q, k, layout.attn_mask)


class EfficientAttention(GridAttention):
    """Efficient attention (arXiv 1812.01243); arguments as GridAttention."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return peers.efficient_attention(q, k, v, layout.attn_mask)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, M]``."""
        return reference.efficient_matrix(q, k, layout.attn_mask)


class AngularAttention(GridAttention):
    """Linear angular attention (Castling-ViT, arXiv 2211.10526), for tokens that attend to themselves.

    Its convolution runs over the token grid here, with kernels that the heads share; in the released code it is
    9 taps along the flattened tokens, one kernel a head, which mixes the ends of rows.
    """

    attends_elsewhere = False  # it adds half of each token's own value

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return peers.angular_attention(q, k, v, layout.attn_mask)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, N]``."""
        return reference.angular_matrix(q, k, v, layout.attn_mask)


class SoftmaxAttention(GridAttention):
    """Softmax attention over all tokens, quadratic: the standard that the others are measured by."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        return peers.softmax_attention(q, k, v, layout.attn_mask)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, M]``."""
        return reference.softmax_matrix(q, k, layout.attn_mask)
