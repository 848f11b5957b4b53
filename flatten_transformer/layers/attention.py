"""The base of every attention over a grid of tokens: projections around a core, and the parts it is made of."""

# B batch, N tokens of x, M tokens of the context, C channels = H heads × D channels per head, G groups of value channels.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from flatten_transformer.layers.core import AttentionCore
from flatten_transformer.layers.layout import Decomposition, Layout
from flatten_transformer.layers.patches import pad_to_patches
from flatten_transformer.ops.checks import shape_of


class Projected(NamedTuple):
    """What goes into a core: projected tokens, the grids they lie on, and whether there are two kinds of tokens."""

    query: Tensor  # [B, N, C]
    key: Tensor  # [B, M, C]
    value: Tensor  # [B, M, C]
    grid_size: Sequence[int]
    context_grid_size: Sequence[int]
    cross: bool = False
    x: Tensor | None = None  # [B, N, C], what was projected


@register_notrace_module  # a leaf to torch.fx, as timm's own modules that look at sizes
class GridAttention(AttentionCore):
    """Base of every attention: a subclass says how queries, keys and values mix; the rest is here.

    A subclass writes ``mix``, and ``weights`` if its matrix shall be seen. Without projections it attends with tokens
    that a host has projected (``attend``); :meth:`add_projections` makes it a layer that is called with tokens.

    Args: as :class:`~flatten_transformer.layers.core.AttentionCore`.

    Example:
        >>> class Mean(GridAttention):
        ...     def mix(self, q, k, v, layout):
        ...         return v.mean(dim=2, keepdim=True).expand_as(q)
        >>> mean = Mean(dim=32, num_heads=2, grid_size=(5, 7), rank_restoration=True)
        >>> mean.add_projections()
        >>> mean(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    attends_elsewhere: ClassVar[bool] = True  # whether keys may be other tokens than the queries
    context_dim: int | None = None
    sr_ratio: int | None = None
    proj: nn.Linear

    def add_projections(
        self,
        *,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        sr_ratio: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make the projections that calling the layer needs.

        Args:
            context_dim: Channels of the context. None: self attention with one ``qkv`` projection. A number:
                queries from ``x``, keys and values from the context, with projections ``q`` and ``kv``.
            qkv_bias: Learn biases in the projections of queries, keys and values.
            proj_bias: Learn a bias in the output projection.
            proj_drop: Dropout probability after the output projection.
            sr_ratio: Take ``x`` for the context, reduced that many times by a strided convolution ``sr`` and
                normalised (PVT); 1 takes it as it is. None: no such context.
            device: Where the parameters are made.
            dtype: Their dtype.

        Raises:
            ValueError: If this attention cannot attend to another context.
        """
        if not self.attends_elsewhere and (context_dim is not None or (sr_ratio or 1) > 1):
            raise ValueError(
                f"{type(self).__name__} mixes a token with its own value, so it can attend to no other context and to no "
                "reduced map: leave context_dim out, and the spatial reduction at 1"
            )
        self.context_dim, self.sr_ratio = context_dim if sr_ratio is None else self.dim, sr_ratio
        if self.context_dim is None:
            self.qkv = nn.Linear(self.dim, 3 * self.dim, bias=qkv_bias, device=device, dtype=dtype)
        else:
            self.q = nn.Linear(self.dim, self.dim, bias=qkv_bias, device=device, dtype=dtype)
            self.kv = nn.Linear(self.context_dim, 2 * self.dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(self.dim, self.dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        self._draw_projections()
        if sr_ratio is not None and sr_ratio > 1:
            self.sr = nn.Conv2d(self.dim, self.dim, sr_ratio, stride=sr_ratio, device=device, dtype=dtype)
            self.sr_norm = nn.LayerNorm(self.dim, device=device, dtype=dtype)

    def _draw_projections(self) -> None:
        # as the released models do; not in reset_parameters, by which timm's init_weights would end
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor | Projected,
        grid_size: Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
        context_grid_size: Sequence[int] | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``x`` to itself, or to ``context`` where the layer has a ``context_dim``.

        Args:
            x: ``[B, N, C]``: prefix tokens, then grid tokens with the last axis fastest. Hosts that keep the projections
                pass what they have projected, with its grids, and get what would go into the output projection.
            grid_size: The grid of ``x``; by default that of the constructor.
            context: ``[B, M, context_dim]``, prefix tokens first.
            context_grid_size: The grid of ``context``; by default that of the constructor.
            attn_mask: Boolean ``[B, 1, 1, M]``, True where a key takes part.

        Returns:
            ``[B, N, C]``.
        """
        if isinstance(x, Projected):
            return self._attend(x, attn_mask)
        out = self._attend(self._project(x, grid_size, context, context_grid_size), attn_mask)
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected

    def _attend(self, tokens: Projected, attn_mask: Tensor | None) -> Tensor:
        query, key, value, grid_size, context_grid_size, cross, x = tokens
        return self.attend(query, key, value, grid_size, context_grid_size, attn_mask, x=x, cross=cross)

    def decompose(
        self,
        x: Tensor,
        grid_size: Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
        context_grid_size: Sequence[int] | None = None,
        attn_mask: Tensor | None = None,
    ) -> Decomposition:
        """Return the attention matrix and what else the output is made of: quadratic, to look at, not to train with.

        Args: as :meth:`forward`.

        Returns:
            The parts: ``layer.proj(layer.decompose(x).output())`` is ``layer(x)`` without dropout, to rounding.

        Raises:
            NotImplementedError: If the design does not say what its matrix is.

        Example:
            >>> from flatten_transformer.layers import create_attention
            >>> layer = create_attention("enhanced", dim=32, num_heads=2, grid_size=(5, 7))
            >>> layer.decompose(torch.randn(3, 35, 32)).matrix.shape
            torch.Size([3, 2, 35, 35])
        """
        query, key, value, grid_size, context_grid_size, cross, _ = self._project(x, grid_size, context, context_grid_size)
        layout = Layout(grid_size, context_grid_size, attn_mask, cross)
        return self.decompose_projected(query, key, value, layout, x)

    def _project(
        self, x: Tensor, grid_size: Sequence[int] | None, context: Tensor | None, context_grid_size: Sequence[int] | None
    ) -> Projected:
        """Return what goes into the core, or raise ValueError if tokens and grids do not fit."""
        on_one_grid = context_grid_size is grid_size
        own_grid = self._fit("x", x, grid_size)
        if self.context_dim is None:
            if context is not None or context_grid_size is not None:
                raise ValueError("this layer attends to x itself: build it with context_dim to pass a context")
            query, key, value = self.qkv(x).chunk(3, dim=2)
            return Projected(query, key, value, own_grid, own_grid, x=x)
        if self.sr_ratio is not None:
            if context is not None or context_grid_size is not None:
                raise ValueError(f"this layer makes its context of x, sr_ratio {self.sr_ratio}: leave context out")
            context, other_grid = self._reduce(x, own_grid)
        elif context is None:
            raise ValueError(f"this layer was built with context_dim={self.context_dim}: pass context=")
        else:
            other_grid = self._fit("context", context, context_grid_size)
            other_grid = own_grid if on_one_grid else other_grid  # one object, which the exporter needs
        key, value = self.kv(context).chunk(2, dim=2)
        return Projected(self.q(x), key, value, own_grid, other_grid, cross=context is not x, x=x)

    def _reduce(self, x: Tensor, grid_size: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
        """Return the context made of ``x`` by spatial reduction, and its grid."""
        if self.sr_ratio is None or self.sr_ratio == 1:
            return x, grid_size
        image = self.sr(pad_to_patches(x.transpose(1, 2).unflatten(2, tuple(grid_size)), self.sr_ratio))
        return self.sr_norm(image.flatten(2).transpose(1, 2)), image.shape[2:]

    def _fit(self, name: str, tokens: Tensor, grid_size: Sequence[int] | None) -> tuple[int, ...]:
        """Return the grid of ``tokens``, or raise ValueError if they do not lie on it."""
        channels = self.dim if name == "x" else self.context_dim
        if tokens.ndim != 3 or tokens.shape[2] != channels:
            raise ValueError(f"{name} must be [batch, tokens, {channels}], got {shape_of(tokens)}")
        chosen = self.grid_size if grid_size is None else self._check_axes(grid_size)
        wanted = self.num_prefix_tokens + math.prod(chosen)
        if tokens.shape[1] != wanted:
            raise ValueError(
                f"{name} has {tokens.shape[1]} tokens; {self.num_prefix_tokens} prefix tokens and the grid {chosen} "
                f"make {wanted}: pass the grid of this input, grid_size=(height, width)"
            )
        return chosen
