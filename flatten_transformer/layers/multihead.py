"""An attention of this library in the place of ``torch.nn.MultiheadAttention``."""

# B batch, N queries, M keys, C channels, G groups of value channels: the heads, of most designs.

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.masks import kept_keys
from flatten_transformer.ops.checks import check_order, shape_of


class MultiheadAdapter(nn.Module):
    """An attention over a grid, called like ``torch.nn.MultiheadAttention``: by torchvision's ViT, by torch's encoder layers.

    Args:
        attention: Attends from a tensor to itself, or to a context if it has a ``context_dim``.
        batch_first: Tensors are ``[B, N, C]``; else ``[N, B, C]``, torch's default.

    Example:
        >>> from flatten_transformer.layers import create_attention
        >>> layer = nn.TransformerEncoderLayer(d_model=32, nhead=2, batch_first=True)
        >>> layer.self_attn = MultiheadAdapter(create_attention("focused", dim=32, num_heads=2, grid_size=(5, 7)))
        >>> layer(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    # What nn.TransformerEncoderLayer asks before it replaces the whole layer by a kernel of its own.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: GridAttention, *, batch_first: bool = True) -> None:
        super().__init__()
        self.attention = attention
        self.batch_first = batch_first
        self.embed_dim, self.num_heads = attention.dim, attention.num_heads

    @property
    def in_proj_weight(self) -> NoReturn:
        """Refuse what ``nn.TransformerEncoder`` reads only to make nested tensors."""
        raise ValueError(
            "nested tensors know no grid: put the adapter into the layer before nn.TransformerEncoder is built of it, or set "
            "encoder.use_nested_tensor = False"
        )

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
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: ``[B, N, C]``, prefix tokens first.
            key: The same tensor, or the context ``[B, M, context_dim]`` of an attention that has one.
            value: The same tensor as ``key``.
            key_padding_mask: ``[B, M]``: True, or minus infinity among zeros, where a key is left out. Other floats are refused;
                compiled graphs, which hold no check, leave such keys out.
            need_weights: Return the matrix too, which takes quadratic time; it lacks convolution and gate.
            attn_mask: Must be None: there is no matrix that a mask of single query-key pairs could be applied to.
            average_attn_weights: Return the mean over the heads.
            is_causal: Must be False.

        Returns:
            Output like ``query``, and the weights, ``[B, N, M]`` or ``[B, G, N, M]``, or None.

        Raises:
            ValueError: If keys and values differ, a mask cannot be applied, or a design has no weights to return.
        """
        mask = multihead_mask(key_padding_mask, attn_mask, is_causal)
        if value is not key:
            raise ValueError("key and value must be one tensor: the attention projects both from its context")
        context = None if key is query and not self._takes_context() else key
        tokens, context = (x if x is None or self.batch_first else x.transpose(0, 1) for x in (query, context))
        assert tokens is not None
        out = self.attention(tokens, context=context, attn_mask=mask)
        out = out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        weights = self.attention.decompose(tokens, context=context, attn_mask=mask).matrix
        return out, weights.mean(dim=1) if average_attn_weights else weights

    def _takes_context(self) -> bool:
        return self.attention.context_dim is not None and self.attention.sr_ratio is None

    def extra_repr(self) -> str:
        """Show the layout of the tensors."""
        return f"batch_first={self.batch_first}"


def multihead_mask(key_padding_mask: Tensor | None, attn_mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """Return where a key takes part, ``[B, 1, 1, M]``, by the masks of ``torch.nn.MultiheadAttention``; None: everywhere.

    Args:
        key_padding_mask: ``[B, M]``: True, or minus infinity among zeros, where a key is left out.
        attn_mask: Must be None.
        is_causal: Must be False.

    Raises:
        ValueError: If a mask cannot be applied by linear attention.
    """
    check_order(is_causal)
    if attn_mask is not None:
        raise ValueError(
            f"attn_mask is {shape_of(attn_mask)}: without the query × key matrix no single query-key pairs can be left "
            "out, but keys can: pass key_padding_mask, [batch, keys], True where a key is left out"
        )
    if key_padding_mask is None:
        return None
    if key_padding_mask.ndim != 2:
        raise ValueError(f"key_padding_mask must be [batch, keys], got {shape_of(key_padding_mask)}")
    if key_padding_mask.dtype == torch.bool:
        return ~key_padding_mask[:, None, None]
    # as nn.TransformerEncoderLayer passes a boolean one on
    return kept_keys("key_padding_mask", key_padding_mask)[:, None, None]
