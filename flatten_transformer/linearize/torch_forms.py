"""Linear form of ``torch.nn.MultiheadAttention``: in torchvision's ViT, in torch's encoder layers, in models of one's own."""

# B batch, N tokens, C channels.

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.layers.attention.layout import split_heads
from flatten_transformer.layers.multihead import multihead_mask
from flatten_transformer.linearize.forms import LinearForm, is_linear, linear_form_of
from flatten_transformer.linearize.mixer import LinearMixer
from flatten_transformer.ops.checks import shape_of


@linear_form_of(nn.MultiheadAttention)
class LinearMultiheadAttention(LinearForm, nn.MultiheadAttention):
    """Linear form of torch's attention, for self attention."""

    @classmethod
    def check(cls, host: Any) -> None:
        """Refuse what attends elsewhere or beyond its tokens."""
        if not host._qkv_same_embed_dim:
            raise ValueError("its keys and values have other channels than its queries, so it attends to another sequence")
        if host.bias_k is not None or host.add_zero_attn:
            raise ValueError("it appends keys of its own (add_bias_kv, add_zero_attn), which lie on no grid")

    @classmethod
    def attention_dropout(cls, host: Any) -> float:
        """Return torch's name for it."""
        return float(host.dropout)

    def adopt(self, mixer: LinearMixer) -> None:
        """Take what attends, and keep torch's encoder layers from replacing it by a kernel of their own."""
        super().adopt(mixer)
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Return the output, like ``query``, and no weights, which would take quadratic time.

        Args: as in torch; ``key`` and ``value`` are ``query``, there is no ``attn_mask``.

        Raises:
            ValueError: If it is no self attention, or a mask cannot be applied.
        """
        if not (query is key is value):
            raise ValueError("this attention attends to its own tokens alone: queries, keys and values must be one tensor")
        if query.ndim != 3:
            raise ValueError(f"tokens must be a batch of three axes, got {shape_of(query)}")
        mask = multihead_mask(key_padding_mask, attn_mask, is_causal)
        x = query if self.batch_first else query.transpose(0, 1)
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=2)
        q, k, v = (split_heads(part, self.num_heads) for part in parts)
        out = self.out_proj(self.mixer(q, k, v, mask, x=x))
        return out if self.batch_first else out.transpose(0, 1), None


def without_nested_tensors(model: nn.Module) -> None:
    """Keep torch's encoders from packing padded batches into nested tensors, which know no grid."""
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(is_linear(part) for part in encoder.modules()):
            encoder.use_nested_tensor = False
