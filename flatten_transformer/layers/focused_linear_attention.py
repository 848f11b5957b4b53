"""Focused linear attention as modules: the core, and the layer with its projections."""

# B batch, N tokens of x, M tokens of the context, C channels = H heads × D channels per head.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatten_transformer.layers.attention import GridAttention
from flatten_transformer.layers.layout import Layout
from flatten_transformer.layers.rank_restoration import DepthwiseConvolution, Stretch, may_read
from flatten_transformer.ops import focused_linear_attention, reference
from flatten_transformer.ops.checks import Norm, check_focusing_factor, check_norm
from flatten_transformer.ops.dispatch import Backend, check_backend


class FocusedLinearAttentionCore(GridAttention):
    """All of focused linear attention but the projections: key encoding, temperature, attention, rank restoration.

    For hosts that keep their projections elsewhere (CSwin); most users want :class:`FocusedLinearAttention`,
    whose arguments these are.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        focusing_factor: float = 3.0,
        kernel_size: int = 5,
        num_prefix_tokens: int = 0,
        norm: Norm = "joint",
        key_encoding: bool = True,
        temperature: bool = True,
        rank_restoration: bool = True,
        stretch: Stretch = "grid",
        backend: Backend | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_focusing_factor(focusing_factor)
        check_norm(norm)
        check_backend(backend)
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
        self.focusing_factor = focusing_factor
        self.norm: Norm = norm
        self.backend = backend

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid_size: Sequence[int],
        context_grid_size: Sequence[int],
        attn_mask: Tensor | None = None,
        *,
        x: Tensor | None = None,
        cross: bool = False,
    ) -> Tensor:
        """Attend in one call of the op, which may be fused; arguments and result as in every attention."""
        layout = Layout(grid_size, context_grid_size, attn_mask, cross)
        q, k, v = (self._split_heads(tokens) for tokens in (query, key, value))
        dwc = self._readable_dwc(v, layout)
        out = focused_linear_attention(
            q,
            k,
            v,
            attn_mask,
            focusing_factor=self.focusing_factor,
            temperature=self.temperature(),
            norm=self.norm,
            key_encoding=self.key_encoding(context_grid_size),
            conv_weight=None if dwc is None else dwc.weight,
            conv_bias=None if dwc is None else dwc.bias,
            grid_size=None if dwc is None else grid_size,
            backend=self.backend,
        )
        out = out.transpose(1, 2).flatten(2)
        if self.dwc is None or dwc is not None:
            return out
        if attn_mask is not None:
            v = v.masked_fill(~attn_mask.transpose(2, 3), 0)  # hidden tokens are padding to the convolution too
        restored = self.restore(v, layout, x)
        assert restored is not None
        return out + restored

    def _readable_dwc(self, v: Tensor, layout: Layout) -> DepthwiseConvolution | None:
        """Return the convolution where the op may read its weights, None where it must be called, if there is one."""
        if self.dwc is None or not layout.in_place or not may_read(self.dwc, v):
            return None
        assert isinstance(self.dwc, DepthwiseConvolution)
        return self.dwc

    def condition(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return them as they are: the temperature divides what ReLU has left, so :meth:`weights` does it."""
        return q, k

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return the matrix ``φ(Q)φ(K)ᵀ``, normalised, ``[B, H, N, M]``."""
        encoding = self.key_encoding(layout.context_grid_size)
        return reference.attention_matrix(
            q,
            k if encoding is None else k + encoding,
            layout.attn_mask,
            focusing_factor=self.focusing_factor,
            temperature=self.temperature(),
            norm=self.norm,
        )

    def extra_repr(self) -> str:
        """Show the options that no submodule shows."""
        return f"{super().extra_repr()}, focusing_factor={self.focusing_factor:g}, norm={self.norm!r}"


class FocusedLinearAttention(FocusedLinearAttentionCore):
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
        sr_ratio: Take ``x`` for the context, reduced that many times by a strided convolution ``sr`` and normalised, as
            PVT does; 1 takes it as it is. ``grid_size`` is then that of the reduced map. None: no such context.
        backend: What computes the attention, see :func:`flatten_transformer.focused_linear_attention`; None chooses.
        device: Where the parameters are made.
        dtype: Their dtype.

    Raises:
        ValueError: At construction, if an option is out of range; at a call, if tokens and grid do not fit.

    Example:
        >>> attention = FocusedLinearAttention(dim=192, num_heads=3, grid_size=(14, 14))
        >>> attention(torch.randn(2, 196, 192)).shape
        torch.Size([2, 196, 192])
        >>> attention(torch.randn(2, 20 * 31, 192), grid_size=(20, 31)).shape
        torch.Size([2, 620, 192])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        focusing_factor: float = 3.0,
        kernel_size: int = 5,
        num_prefix_tokens: int = 0,
        norm: Norm = "joint",
        key_encoding: bool = True,
        temperature: bool = True,
        rank_restoration: bool = True,
        stretch: Stretch = "grid",
        sr_ratio: int | None = None,
        backend: Backend | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            grid_size,
            focusing_factor=focusing_factor,
            kernel_size=kernel_size,
            num_prefix_tokens=num_prefix_tokens,
            norm=norm,
            key_encoding=key_encoding,
            temperature=temperature,
            rank_restoration=rank_restoration,
            stretch=stretch,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.add_projections(
            context_dim=context_dim,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            proj_drop=proj_drop,
            sr_ratio=sr_ratio,
            device=device,
            dtype=dtype,
        )


def set_backend(module: nn.Module, backend: Backend | None) -> None:
    """Tell every focused linear attention in ``module`` what computes it.

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
        if isinstance(part, FocusedLinearAttentionCore):
            part.backend = backend
