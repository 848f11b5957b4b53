"""What every attention over a grid of tokens shares between its projections: key encoding, temperature, convolution."""

# B batch, N queries, M keys, C channels = H heads × D channels per head, G groups of value channels.

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.layers.layout import Decomposition, Layout, check_grid
from flatten_transformer.layers.learned_grids import Grid, LearnsOnGrid
from flatten_transformer.layers.rank_restoration import Stretch, convolve_values, depthwise_convolution, stretch_values
from flatten_transformer.ops.checks import check_mask
from flatten_transformer.ops.precision import sum_dtype


class AttentionCore(LearnsOnGrid, nn.Module):
    """An attention without its projections, for hosts that keep them elsewhere (CSwin): see GridAttention, its subclass.

    Args:
        dim: Channels C.
        num_heads: Heads; divides ``dim``.
        grid_size: The grid that encodings are learned on (of the context, where there is one): one, two or three
            axes. Other grids may be passed at each call; what was learned is resized to them.
        kernel_size: Side of the depthwise convolution; odd.
        num_prefix_tokens: Class and register tokens before the grid tokens: they take part in the attention, not in
            the convolution and the key encoding.
        key_encoding: Add a learned ``positional_encoding`` to the keys.
        temperature: Divide queries and keys by softplus(``scale``), learned per channel.
        rank_restoration: Add the depthwise convolution ``dwc`` of the values.
        stretch: Where queries and context lie on different grids, how the values are stretched before the
            convolution: along the ``"grid"``, or along the flattened ``"tokens"`` as FLatten's released code does.
        device: Where the parameters are made.
        dtype: Their dtype.

    Raises:
        ValueError: At construction, if an option is out of range; at a call, if tokens and grid do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        kernel_size: int = 5,
        num_prefix_tokens: int = 0,
        key_encoding: bool = False,
        temperature: bool = False,
        rank_restoration: bool = False,
        stretch: Stretch = "grid",
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
        self.dim = dim
        self.num_heads = num_heads
        self.grid_size = check_grid(grid_size)
        self.num_prefix_tokens = num_prefix_tokens
        self.stretch: Stretch = stretch

        self.scale: nn.Parameter | None = None
        if temperature:
            self.scale = nn.Parameter(torch.zeros(1, 1, dim, device=device, dtype=dtype))
        self.positional_encoding: nn.Parameter | None = None
        if key_encoding:
            count = math.prod(self.grid_size)
            self.positional_encoding = nn.Parameter(torch.zeros(1, count, dim, device=device, dtype=dtype))
        self.dwc: nn.Module | None = None  # a depthwise convolution, or what somebody has made of it
        if rank_restoration:
            axes = len(self.grid_size)
            self.dwc = depthwise_convolution(self._kernel_count(), kernel_size, axes, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Set what the attention learns beside its modules back to zero, as timm's ``init_weights`` asks for."""
        for parameter in (self.scale, self.positional_encoding):
            if parameter is not None:
                nn.init.zeros_(parameter)

    # What a subclass says ---------------------------------------------------------------------------------------------

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Attend, ``[B, H, N, D]``, with queries ``[B, H, N, D]``, keys and values ``[B, H, M, D]``."""
        raise NotImplementedError(f"{type(self).__name__} must say how it attends: write mix(self, q, k, v, layout)")

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return the matrix that :meth:`mix` multiplies the values by, ``[B, G, N, M]``, of the same arguments."""
        raise NotImplementedError(f"{type(self).__name__} shows no matrix: write weights(self, q, k, v, layout)")

    def gate(self, x: Tensor | None) -> Tensor | None:
        """Return what the output is multiplied by, ``[B, N, C]`` of the tokens ``[B, N, C]``; None: by nothing."""
        return None

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of a checkpoint, of the parameter ``name``, resized to the grid of this attention."""
        return tensor

    def _kernel_count(self) -> int:
        """Return how many kernels ``dwc`` has: the heads share them."""
        return self.dim // self.num_heads

    # With projected tokens --------------------------------------------------------------------------------------------

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
        """Attend with projected tokens, heads side by side in the channels.

        Args:
            query: ``[B, N, C]``, prefix tokens first.
            key: ``[B, M, C]``, prefix tokens first.
            value: ``[B, M, C]``, prefix tokens first.
            grid_size: The grid of the queries.
            context_grid_size: The grid of the keys and values.
            attn_mask: Boolean ``[B, 1, 1, M]``, True where a key takes part.
            x: The tokens that were projected, ``[B, N, C]``, for designs that look at them.
            cross: Whether the keys are other tokens than the queries; else the mask tells padded queries too.

        Returns:
            ``[B, N, C]``.
        """
        layout = Layout(grid_size, context_grid_size, attn_mask, cross)
        q, k, v = self.split(query, key, value, layout)
        q, k = self.condition(q, k, layout)
        out = self.mix(q, k, v.to(q.dtype), layout).to(v.dtype).transpose(1, 2).flatten(2)
        restored = self.restore(v, layout, x)
        out = out if restored is None else out + restored
        gate = self.gate(x)
        return out if gate is None else out * gate

    def decompose_projected(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, x: Tensor | None = None
    ) -> Decomposition:
        """Return the attention matrix of projected tokens and what else :meth:`attend` makes its output of, quadratic.

        Args:
            query: ``[B, N, C]``, as every tensor: see :meth:`attend`.
            key: ``[B, M, C]``.
            value: ``[B, M, C]``.
            layout: Where they lie.
            x: The tokens that were projected.

        Raises:
            NotImplementedError: If the design does not say what its matrix is.
        """
        q, k, v = self.split(query, key, value, layout)
        q, k = self.condition(q, k, layout)
        matrix = self.weights(q, k, v.to(q.dtype), layout).to(v.dtype)
        return Decomposition(matrix, v, self.restore(v, layout, x), self.gate(x))

    def split(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Return the heads apart, ``[B, H, N, D]`` and twice ``[B, H, M, D]``, masked keys and values zero."""
        q, k, v = (self._split_heads(tokens) for tokens in (query, key, value))
        if layout.attn_mask is not None:  # before anything else: a masked NaN must not reach a sum, forward or backward
            check_mask(layout.attn_mask, k)
            hidden = ~layout.attn_mask.transpose(2, 3)  # [B, 1, M, 1]
            k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
        return q, k, v

    def condition(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Add the key encoding and divide by the temperature, ``[B, H, N, D]`` and ``[B, H, M, D]``, in the dtype of sums."""
        encoding, temperature = self.key_encoding(layout.context_grid_size), self.temperature()
        if encoding is None and temperature is None:
            return q, k
        dtype = sum_dtype(q)
        q, k = q.to(dtype), k.to(dtype)
        k = k if encoding is None else k + encoding.to(dtype)
        if temperature is None:
            return q, k
        inverse = (1 / temperature).to(dtype)[:, None, :]
        return q * inverse, k * inverse

    def restore(self, v: Tensor, layout: Layout, x: Tensor | None) -> Tensor | None:
        """Convolve the values ``[B, H, M, D]``, zero where masked, where the outputs lie: ``[B, N, C]``, or None."""
        if self.dwc is None:
            return None
        if self._kernel_count() != v.shape[3]:
            v = v.transpose(1, 2).flatten(2)[:, None]  # [B, 1, M, C]: a kernel for each channel of all heads
        tokens = self._values_at_outputs(v, layout)
        restored = convolve_values(self.dwc, tokens, layout.grid_size)
        return F.pad(restored, (0, 0, self.num_prefix_tokens, 0)).transpose(1, 2).flatten(2)

    def _values_at_outputs(self, v: Tensor, layout: Layout) -> Tensor:
        """Return the grid tokens of ``[B, H, M, D]``, stretched to the grid of the queries if it is another."""
        tokens = v[:, :, self.num_prefix_tokens :]
        if layout.in_place:
            return tokens
        return stretch_values(tokens, layout.context_grid_size, layout.grid_size, stretch=self.stretch)

    def key_encoding(self, grid_size: Sequence[int]) -> Tensor | None:
        """Return what is added to the keys, resized to their grid, ``[H, M, D]``; nothing is added to prefix tokens."""
        if self.positional_encoding is None:
            return None
        encoding = resize_grid(self.positional_encoding, self.grid_size, grid_size)
        if self.num_prefix_tokens:
            encoding = F.pad(encoding, (0, 0, self.num_prefix_tokens, 0))
        return self._split_heads(encoding)[0]

    def temperature(self) -> Tensor | None:
        """Return the positive temperature softplus(scale), ``[H, D]``, or None where it is switched off.

        It never falls below 1e-30, so that its reciprocal is a number: what is that small leaves other channels no say.
        """
        if self.scale is None:
            return None
        scale = self.scale if self.scale.element_size() >= 4 else self.scale.float()
        return F.softplus(scale).clamp_min(1e-30).reshape(self.num_heads, -1)

    def set_grid_size(self, grid_size: Sequence[int]) -> None:
        """Learn on another grid from here on: resizes the parameters that belong to a grid."""
        old, self.grid_size = self.grid_size, self._check_axes(grid_size)
        if self.positional_encoding is not None:
            resized = resize_grid(self.positional_encoding.detach(), old, self.grid_size)
            self.positional_encoding = nn.Parameter(resized, requires_grad=self.positional_encoding.requires_grad)

    def learned_grids(self) -> Mapping[str, Grid]:
        """Return the grid of the key encoding, if there is one."""
        return {} if self.positional_encoding is None else {"positional_encoding": self.grid_size}

    def fit_learned(
        self, tensors: MutableMapping[str, Tensor], prefix: str, known: Any = None, *, resuming: bool = False
    ) -> None:
        """Resize what was learned on other grids, that of subclasses (:meth:`fit`) too."""
        super().fit_learned(tensors, prefix, known, resuming=resuming)
        for leaf, _ in self.named_parameters():
            if prefix + leaf in tensors and leaf != "positional_encoding":
                tensors[prefix + leaf] = self.fit(leaf, tensors[prefix + leaf])

    def _check_axes(self, grid_size: Sequence[int]) -> tuple[int, ...]:
        """Return the grid as a tuple, or raise ValueError if it is none with the axes of the learned one."""
        grid_size = check_grid(grid_size)
        if len(grid_size) != len(self.grid_size):
            raise ValueError(f"the layer was built for {len(self.grid_size)} axes, grid_size {self.grid_size}; got {grid_size}")
        return grid_size

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, H, N, D]

    def extra_repr(self) -> str:
        """Show the options that no submodule shows."""
        return f"num_heads={self.num_heads}, grid_size={self.grid_size}, num_prefix_tokens={self.num_prefix_tokens}"
