"""Focused linear attention: Han et al., "FLatten Transformer", ICCV 2023, arXiv 2308.00442, and its ablations."""

# B batch, N queries, M keys, C channels = H heads × D channels per head.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Unpack

from flatten_transformer.layers.attention.base import GridAttention, GridOptions
from flatten_transformer.layers.attention.layout import Layout, merge_heads
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.rank_restoration import DepthwiseConvolution, may_read
from flatten_transformer.ops import focused_linear_attention, reference
from flatten_transformer.ops.checks import Norm, check_focusing_factor, check_norm
from flatten_transformer.ops.dispatch import Backend, check_backend

_PLAIN: dict[str, Any] = {"focusing_factor": 1.0, "key_encoding": False, "temperature": False}


# The "vanilla linear attention" of FLatten's ablation and, with a convolution, the enhanced linear attention of EfficientViT
# (Cai et al., ICCV 2023, arXiv 2205.14756) as FLatten compares it.
@register_attention("enhanced", **_PLAIN)
@register_attention("relu", **_PLAIN, rank_restoration=False)
@register_attention("focused")
class FocusedLinearAttention(GridAttention):
    """Focused linear attention over a grid of tokens, in linear time: FLatten, arXiv 2308.00442.

    ``proj(φ(q) φ(k)ᵀ v + DWC(v))`` with ``k + positional_encoding`` and the temperature ``softplus(scale)``;
    the order, the epsilons and the names of the parameters are those of the released models, so official
    weights load. No dropout on the attention, no 1/√D.

    Args:
        dim: Channels C of ``x``.
        num_heads: Heads; divides ``dim``.
        grid_size: The grid the key encoding is learned on (of the context, where there is one): one, two or
            three axes. Other grids may be passed at each call; the encoding is resized to them.
        context_dim: Channels of the context. None: self attention with one ``qkv`` projection. A number:
            queries from ``x``, keys and values from ``context``, with projections ``q`` and ``kv``.
        qkv_bias: Learn biases in the projections of queries, keys and values.
        proj_bias: Learn a bias in the output projection.
        proj_drop: Dropout probability after the output projection.
        focusing_factor: The power p ≥ 1; 1 switches focusing off.
        kernel_size: Side of the depthwise convolution; odd.
        num_prefix_tokens: Class and register tokens before the grid tokens, in ``x`` and in ``context``:
            they take part in the attention, not in the convolution and the key encoding.
        norm: ``"joint"`` norms over all heads (official weights) or ``"per_head"``.
        key_encoding: Add the learned ``positional_encoding`` to the keys.
        temperature: Divide queries and keys by softplus(``scale``), learned per channel.
        rank_restoration: Add the depthwise convolution ``dwc`` of the values.
        stretch: Where queries and context lie on different grids, how the values are stretched before the
            convolution: along the ``"grid"``, or along the flattened ``"tokens"`` as the released code does.
        sr_ratio: Take the context from ``x``, reduced this many times by a strided convolution ``sr`` and normalised, as in
            PVT; 1: ``x`` itself. ``grid_size`` is then that of the reduced map. None: no such context.
        backend: Backend of the attention, see :func:`flatten_transformer.focused_linear_attention`; None chooses.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: At construction, if an option is out of range; at a call, if tokens and grid do not fit.

    Example:
        >>> attention = FocusedLinearAttention(dim=192, num_heads=3, grid_size=(14, 14))
        >>> attention(torch.randn(2, 196, 192)).shape
        torch.Size([2, 196, 192])
        >>> attention(torch.randn(2, 20 * 31, 192), grid_size=(20, 31)).shape
        torch.Size([2, 620, 192])
    """

    defaults: ClassVar[GridOptions] = {"key_encoding": True, "temperature": True, "rank_restoration": True}

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        focusing_factor: float = 3.0,
        norm: Norm = "joint",
        backend: Backend | None = None,
        **options: Unpack[GridOptions],
    ) -> None:
        check_focusing_factor(focusing_factor)
        check_norm(norm)
        check_backend(backend)
        super().__init__(dim, num_heads, grid_size, **options)
        self.focusing_factor = focusing_factor
        self.norm: Norm = norm
        self.backend = backend

    def compute(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, x: Tensor | None) -> Tensor:
        """Return ``[B, N, C]`` of split heads by one call of the op, which may be fused."""
        dwc = self._readable_dwc(v, layout)
        out = focused_linear_attention(
            q,
            k,
            v,
            layout.attn_mask,
            focusing_factor=self.focusing_factor,
            temperature=self.temperature(),
            norm=self.norm,
            key_encoding=self.key_encoding(layout.context_grid_size),
            conv_weight=None if dwc is None else dwc.weight,
            conv_bias=None if dwc is None else dwc.bias,
            grid_size=None if dwc is None else layout.grid_size,
            backend=self.backend,
        )
        restored = None if dwc is not None else self.restore(layout.hide(k, v)[1], layout, x)
        return merge_heads(out) if restored is None else merge_heads(out) + restored

    def _readable_dwc(self, v: Tensor, layout: Layout) -> DepthwiseConvolution | None:
        """Return the convolution if the op may read its weights; None if it must be called, or there is none."""
        if self.dwc is None or not layout.in_place or not may_read(self.dwc, v):
            return None
        assert isinstance(self.dwc, DepthwiseConvolution)
        return self.dwc

    def condition(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Add the key encoding alone: the temperature divides after ReLU, in :meth:`weights`."""
        encoding = self.key_encoding(layout.context_grid_size)
        return q, k if encoding is None else k + encoding

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return the matrix ``φ(Q)φ(K)ᵀ``, normalised, ``[B, H, N, M]``."""
        return reference.attention_matrix(
            q, k, layout.attn_mask, focusing_factor=self.focusing_factor, temperature=self.temperature(), norm=self.norm
        )

    def extra_repr(self) -> str:
        """Show the options that no submodule shows."""
        return f"{super().extra_repr()}, focusing_factor={self.focusing_factor:g}, norm={self.norm!r}"


class FocusedLinearAttentionCore(FocusedLinearAttention):
    """Focused linear attention with ``projections=False``: an alias from earlier versions."""

    defaults: ClassVar[GridOptions] = {"projections": False}


def set_backend(module: nn.Module, backend: Backend | None) -> None:
    """Set the backend of every focused linear attention in ``module``.

    Args:
        module: A model, or any part of one.
        backend: See :func:`flatten_transformer.focused_linear_attention`; None chooses.

    Raises:
        ValueError: If there is no such backend.

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_deit_tiny_patch16_224", depth=1)
        >>> set_backend(model, "portable")
        >>> model.blocks[0].attn.backend
        'portable'
    """
    check_backend(backend)
    for part in module.modules():
        if isinstance(part, FocusedLinearAttention):
            part.backend = backend
