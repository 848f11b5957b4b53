"""Focused linear attention as modules: the core, and the layer with its projections."""

# B batch, N tokens of x, M tokens of the context, C channels = H heads × D channels per head.

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.layers.projection import Projection
from flatten_transformer.layers.rank_restoration import DepthwiseConvolution, Stretch, depthwise_convolution, stretch_values
from flatten_transformer.ops import focused_linear_attention
from flatten_transformer.ops.checks import Norm, check_focusing_factor, check_norm, shape_of
from flatten_transformer.ops.dispatch import Backend, check_backend
from flatten_transformer.ops.rank_restoration import restore_rank


class FocusedLinearAttentionCore(nn.Module):
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
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim {dim} and num_heads {num_heads}")
        if num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens must be at least 0, got {num_prefix_tokens}")
        if stretch not in ("grid", "tokens"):
            raise ValueError(f'stretch must be "grid" or "tokens", got {stretch!r}')
        check_focusing_factor(focusing_factor)
        check_norm(norm)
        check_backend(backend)
        self.num_heads = num_heads
        self.grid_size = check_grid(grid_size)
        self.num_prefix_tokens = num_prefix_tokens
        self.focusing_factor = focusing_factor
        self.norm: Norm = norm
        self.stretch: Stretch = stretch
        self.backend = backend

        self.scale: nn.Parameter | None = None
        if temperature:
            self.scale = nn.Parameter(torch.zeros(1, 1, dim, device=device, dtype=dtype))
        self.positional_encoding: nn.Parameter | None = None
        if key_encoding:
            count = math.prod(self.grid_size)
            self.positional_encoding = nn.Parameter(torch.zeros(1, count, dim, device=device, dtype=dtype))
        self.dwc: DepthwiseConvolution | None = None
        if rank_restoration:
            axes = len(self.grid_size)
            self.dwc = depthwise_convolution(dim // num_heads, kernel_size, axes, device=device, dtype=dtype)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid_size: Sequence[int],
        context_grid_size: Sequence[int],
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend with projected tokens, heads side by side in the channels.

        Args:
            query: ``[B, N, C]``, prefix tokens first.
            key: ``[B, M, C]``, prefix tokens first.
            value: ``[B, M, C]``, prefix tokens first.
            grid_size: The grid of the queries.
            context_grid_size: The grid of the keys and values.
            attn_mask: Boolean ``[B, 1, 1, M]``, True where a key takes part.

        Returns:
            ``[B, N, C]``.
        """
        q, k, v = (self._split_heads(x) for x in (query, key, value))
        # The exporter cannot tell whether two free sizes are equal, but whether they are one.
        in_place = context_grid_size is grid_size or (
            not torch.compiler.is_exporting() and tuple(context_grid_size) == tuple(grid_size)
        )
        dwc = self.dwc if in_place else None
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
        if self.dwc is not None and not in_place:
            out = out + self._restore_elsewhere(v, attn_mask, context_grid_size, grid_size)
        return out.transpose(1, 2).flatten(2)

    def _restore_elsewhere(
        self, v: Tensor, attn_mask: Tensor | None, grid_size: Sequence[int], out_grid_size: Sequence[int]
    ) -> Tensor:
        """Stretch the values ``[B, H, M, D]`` to the grid of the queries and convolve them there, ``[B, H, N, D]``."""
        assert self.dwc is not None
        if attn_mask is not None:
            v = v.masked_fill(~attn_mask.transpose(2, 3), 0)  # hidden tokens are padding to the convolution too
        grid_tokens = v[:, :, self.num_prefix_tokens :]
        stretched = stretch_values(grid_tokens, grid_size, out_grid_size, stretch=self.stretch)
        restored = restore_rank(stretched, self.dwc.weight, self.dwc.bias, out_grid_size)
        return F.pad(restored, (0, 0, self.num_prefix_tokens, 0))

    def key_encoding(self, grid_size: Sequence[int]) -> Tensor | None:
        """Return what is added to the keys, resized to their grid, ``[H, M, D]``; nothing is added to prefix tokens."""
        if self.positional_encoding is None:
            return None
        encoding = resize_grid(self.positional_encoding, self.grid_size, grid_size)
        if self.num_prefix_tokens:
            encoding = F.pad(encoding, (0, 0, self.num_prefix_tokens, 0))
        return self._split_heads(encoding)[0]

    def set_grid_size(self, grid_size: Sequence[int]) -> None:
        """Learn the key encoding on another grid from here on: resizes the parameter."""
        old, self.grid_size = self.grid_size, self._check_axes(grid_size)
        if self.positional_encoding is not None:
            resized = resize_grid(self.positional_encoding.detach(), old, self.grid_size)
            self.positional_encoding = nn.Parameter(resized, requires_grad=self.positional_encoding.requires_grad)

    def _check_axes(self, grid_size: Sequence[int]) -> tuple[int, ...]:
        """Return the grid as a tuple, or raise ValueError if it is none with the axes of the learned one."""
        grid_size = check_grid(grid_size)
        if len(grid_size) != len(self.grid_size):
            raise ValueError(f"the layer was built for {len(self.grid_size)} axes, grid_size {self.grid_size}; got {grid_size}")
        return grid_size

    def temperature(self) -> Tensor | None:
        """Return the positive temperature softplus(scale), ``[H, D]``, or None where it is switched off."""
        if self.scale is None:
            return None
        scale = self.scale if self.scale.element_size() >= 4 else self.scale.float()
        return F.softplus(scale).reshape(self.num_heads, -1)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, H, N, D]

    def extra_repr(self) -> str:
        """Show the options that no submodule shows."""
        return (
            f"num_heads={self.num_heads}, grid_size={self.grid_size}, focusing_factor={self.focusing_factor:g}, "
            f"num_prefix_tokens={self.num_prefix_tokens}, norm={self.norm!r}"
        )


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
        self.context_dim = context_dim
        if context_dim is None:
            self.qkv = Projection(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        else:
            self.q = Projection(dim, dim, bias=qkv_bias, device=device, dtype=dtype)
            self.kv = Projection(context_dim, 2 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = Projection(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections as the released models do: normal with deviation 0.02, biases zero."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        grid_size: Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
        context_grid_size: Sequence[int] | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``x`` to itself, or to ``context`` where the layer has a ``context_dim``.

        Args:
            x: ``[B, N, C]``: prefix tokens, then grid tokens with the last axis fastest.
            grid_size: The grid of ``x``; by default that of the constructor.
            context: ``[B, M, context_dim]``, prefix tokens first.
            context_grid_size: The grid of ``context``; by default that of the constructor.
            attn_mask: Boolean ``[B, 1, 1, M]``, True where a key takes part.

        Returns:
            ``[B, N, C]``.
        """
        on_one_grid = context_grid_size is grid_size
        grid_size = self._fit("x", x, grid_size)
        if self.context_dim is None:
            if context is not None or context_grid_size is not None:
                raise ValueError("this layer attends to x itself: build it with context_dim to pass a context")
            q, k, v = self.qkv(x).chunk(3, dim=2)
            context_grid_size = grid_size
        else:
            if context is None:
                raise ValueError(f"this layer was built with context_dim={self.context_dim}: pass context=")
            fitted = self._fit("context", context, context_grid_size)
            context_grid_size = grid_size if on_one_grid else fitted
            q = self.q(x)
            k, v = self.kv(context).chunk(2, dim=2)
        out = self.attend(q, k, v, grid_size, context_grid_size, attn_mask)
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected

    def _fit(self, name: str, tokens: Tensor, grid_size: Sequence[int] | None) -> tuple[int, ...]:
        """Return the grid of ``tokens``, or raise ValueError if they do not lie on it."""
        channels = self.proj.out_features if name == "x" else self.context_dim
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


def check_grid(grid_size: Sequence[int]) -> tuple[int, ...]:
    """Return the grid as a tuple, or raise ValueError if it is not 1 to 3 positive sizes."""
    if not isinstance(grid_size, Sequence) or not 1 <= len(grid_size) <= 3 or any(size < 1 for size in grid_size):
        raise ValueError(f"grid_size must hold one to three positive sizes, such as (14, 14), got {grid_size!r}")
    return tuple(grid_size)
