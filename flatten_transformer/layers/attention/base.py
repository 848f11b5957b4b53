"""Base class of attentions over a grid of tokens: everything but the mixing of queries, keys and values."""

# B batch, N queries, M keys, C channels = H heads × D channels per head, G groups of value channels.

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn
from typing_extensions import Unpack

from flatten_transformer.layers.attention.layout import Decomposition, Layout, check_grid, combine, merge_heads, split_heads
from flatten_transformer.layers.attention.signature import signature_of
from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.layers.learned_grids import Grid, LearnsOnGrid
from flatten_transformer.layers.patches import pad_to_patches
from flatten_transformer.layers.rank_restoration import (
    Stretch,
    convolve_values,
    depthwise_convolution,
    stretch_values,
    zero_parameters,
)
from flatten_transformer.ops.checks import check_order, shape_of
from flatten_transformer.ops.precision import sum_dtype, without_autocast
from flatten_transformer.utils.suggest import did_you_mean


class GridOptions(TypedDict, total=False):
    """Options of every attention, documented by :class:`GridAttention`, whose ``defaults`` hold their defaults."""

    kernel_size: int
    num_prefix_tokens: int
    key_encoding: bool
    temperature: bool
    rank_restoration: bool
    stretch: Stretch
    projections: bool
    context_dim: int | None
    qkv_bias: bool
    proj_bias: bool
    proj_drop: float
    sr_ratio: int | None
    device: torch.device | None
    dtype: torch.dtype | None


class Projected(NamedTuple):
    """Projected tokens, heads side by side in the channels, and their layout: the arguments of ``attend``."""

    query: Tensor  # [B, N, C], prefix tokens first
    key: Tensor  # [B, M, C]
    value: Tensor  # [B, M, C]
    layout: Layout
    x: Tensor | None = None  # [B, N, C], the tokens before projection, for designs that use them


@register_notrace_module  # a leaf to torch.fx, as timm's modules that read sizes
class GridAttention(LearnsOnGrid, nn.Module):
    """Attention over a grid of tokens: a subclass mixes queries, keys and values; the rest is here.

    A subclass writes ``mix``, and ``weights`` to show its matrix. Options of its own are keyword arguments of its
    ``__init__``, which passes ``**options`` on; ``defaults`` holds those of the options below that differ.

    Args:
        dim: Channels C.
        num_heads: Heads; divides ``dim``.
        grid_size: The grid that encodings are learned on (that of the context, where there is one): one, two or three
            axes. Other grids may be passed at each call; encodings are resized to them.
        kernel_size: Side of the depthwise convolution; odd.
        num_prefix_tokens: Class and register tokens before the grid tokens: they take part in the attention, not in
            the convolution and the key encoding.
        key_encoding: Add a learned ``positional_encoding`` to the keys.
        temperature: Divide queries and keys by softplus(``scale``), learned per channel.
        rank_restoration: Add the depthwise convolution ``dwc`` of the values.
        stretch: Where queries and context lie on different grids, how the values are stretched before the
            convolution: along the ``"grid"``, or along the flattened ``"tokens"`` as FLatten's released code does.
        projections: Learn the projections of queries, keys, values and output. Without them the layer is called with
            :class:`Projected` tokens, by hosts that project themselves (CSwin).
        context_dim: Channels of the context. None: self attention with one ``qkv`` projection. A number: queries from
            ``x``, keys and values from the context, with projections ``q`` and ``kv``.
        qkv_bias: Learn biases in the projections of queries, keys and values.
        proj_bias: Learn a bias in the output projection.
        proj_drop: Dropout probability after the output projection.
        sr_ratio: Take the context from ``x``, reduced this many times by a strided convolution ``sr`` and normalised (PVT);
            1: ``x`` itself. None: no such context.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: At construction, for an unknown option.
        ValueError: At construction, if an option is out of range; at a call, if tokens and grid do not fit.

    Example:
        >>> class Mean(GridAttention):
        ...     defaults = {"rank_restoration": True}
        ...     def mix(self, q, k, v, layout):
        ...         return v.mean(dim=2, keepdim=True).expand_as(q)
        >>> Mean(dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    defaults: ClassVar[GridOptions] = {
        "kernel_size": 5,
        "num_prefix_tokens": 0,
        "key_encoding": False,
        "temperature": False,
        "rank_restoration": False,
        "stretch": "grid",
        "projections": True,
        "context_dim": None,
        "qkv_bias": True,
        "proj_bias": True,
        "proj_drop": 0.0,
        "sr_ratio": None,
        "device": None,
        "dtype": None,
    }
    attends_elsewhere: ClassVar[bool] = True  # whether keys and queries may be different tokens
    wide_sums: ClassVar[bool] = True  # whether mix runs in the dtype of sums, out of autocast
    own_modules: ClassVar[tuple[str, ...]] = ()  # registered before the projections, the order in saved optimizers

    __signature__: ClassVar[inspect.Signature]
    context_dim: int | None = None
    sr_ratio: int | None = None
    proj: nn.Linear

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.defaults = {**super(cls, cls).defaults, **cls.defaults}  # type: ignore[misc]  # super() finds it
        cls.__signature__ = signature_of(cls, GridOptions.__annotations__, cls.defaults)

    def __init__(self, dim: int, num_heads: int, grid_size: Sequence[int], **options: Unpack[GridOptions]) -> None:
        super().__init__()
        for name in options.keys() - GridAttention.defaults.keys():
            raise TypeError(
                f"{type(self).__name__} has no option {name!r}: {did_you_mean(name, inspect.signature(type(self)).parameters)}"
            )
        chosen: GridOptions = {**self.defaults, **options}
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim {dim} and num_heads {num_heads}")
        if chosen["num_prefix_tokens"] < 0:
            raise ValueError(f"num_prefix_tokens must be at least 0, got {chosen['num_prefix_tokens']}")
        if chosen["stretch"] not in ("grid", "tokens"):
            raise ValueError(f'stretch must be "grid" or "tokens", got {chosen["stretch"]!r}')
        self.dim, self.num_heads = dim, num_heads
        self.grid_size = check_grid(grid_size)
        self.num_prefix_tokens = chosen["num_prefix_tokens"]
        self.stretch: Stretch = chosen["stretch"]

        factory: Any = {"device": chosen["device"], "dtype": chosen["dtype"]}
        self.scale = nn.Parameter(torch.zeros(1, 1, dim, **factory)) if chosen["temperature"] else None
        self.positional_encoding: nn.Parameter | None = None
        if chosen["key_encoding"]:
            self.positional_encoding = nn.Parameter(torch.zeros(1, math.prod(self.grid_size), dim, **factory))
        self.dwc: nn.Module | None = None  # a depthwise convolution, or a wrapper or replacement of it
        if chosen["rank_restoration"]:
            self._add_restoration(chosen["kernel_size"], **factory)
        for name in self.own_modules:
            if name not in self._modules:
                self.register_module(name, None)
        if chosen["projections"]:
            self._add_projections(chosen, **factory)

    def _add_restoration(self, kernel_size: int, **factory: Any) -> None:
        """Make the modules of :meth:`restore`."""
        self.dwc = depthwise_convolution(self._kernel_count(), kernel_size, len(self.grid_size), **factory)

    def _kernel_count(self) -> int:
        """Return how many kernels ``dwc`` has: the heads share them."""
        return self.dim // self.num_heads

    def _add_projections(self, options: GridOptions, **factory: Any) -> None:
        context_dim, sr_ratio = options["context_dim"], options["sr_ratio"]
        if not self.attends_elsewhere and (context_dim is not None or (sr_ratio or 1) > 1):
            raise ValueError(
                f"{type(self).__name__} mixes a token with its own value, so it can attend to no other context and to no "
                "reduced map: leave context_dim out, and the spatial reduction at 1"
            )
        self.context_dim, self.sr_ratio = context_dim if sr_ratio is None else self.dim, sr_ratio
        if self.context_dim is None:
            self.qkv = nn.Linear(self.dim, 3 * self.dim, bias=options["qkv_bias"], **factory)
        else:
            self.q = nn.Linear(self.dim, self.dim, bias=options["qkv_bias"], **factory)
            self.kv = nn.Linear(self.context_dim, 2 * self.dim, bias=options["qkv_bias"], **factory)
        self.proj = nn.Linear(self.dim, self.dim, bias=options["proj_bias"], **factory)
        self.proj_drop = nn.Dropout(options["proj_drop"])
        # as in the released models; not in reset_parameters, which timm's init_weights calls last
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if sr_ratio is not None and sr_ratio > 1:
            self.sr = nn.Conv2d(self.dim, self.dim, sr_ratio, stride=sr_ratio, **factory)
            self.sr_norm = nn.LayerNorm(self.dim, **factory)

    def reset_parameters(self) -> None:
        """Set the parameters outside the submodules to zero, as timm's ``init_weights`` expects."""
        for parameter in (self.scale, self.positional_encoding):
            if parameter is not None:
                nn.init.zeros_(parameter)

    # Overridden by subclasses -----------------------------------------------------------------------------------------

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Attend, ``[B, H, N, D]``, with queries ``[B, H, N, D]``, keys and values ``[B, H, M, D]``.

        Masked values are zeros; masked keys are finite but arbitrary.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it attends: write mix(self, q, k, v, layout)")

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return the matrix by which :meth:`mix` multiplies the values, ``[B, G, N, M]``, from the same arguments.

        Raises:
            ValueError: If a design leaves it out, which is needed for analysis alone.
        """
        raise ValueError(
            f"{type(self).__name__} shows no matrix: write weights(self, q, k, v, layout), by which mix multiplies the values"
        )

    def gate(self, x: Tensor | None) -> Tensor | None:
        """Return the factor of the output, ``[B, N, C]`` of the tokens ``[B, N, C]``; None: no gate."""
        return None

    @property
    def needs_tokens(self) -> bool:
        """Whether queries, keys and values are not enough: :meth:`gate` or :meth:`restore` looks at the tokens before them."""
        return False

    def neutralize(self) -> None:
        """Set what stands beside the formula to nothing, convolutions to zero and a gate to one, as in a converted model."""
        if self.dwc is not None:
            zero_parameters(self.dwc)

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Return a checkpoint's tensor for the parameter ``name``, resized to the grid of this attention."""
        return tensor

    # Called with tokens -----------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor | Projected,
        grid_size: Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
        context_grid_size: Sequence[int] | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend from ``x`` to itself, or to ``context`` where the layer has a ``context_dim``.

        Args:
            x: ``[B, N, C]``: prefix tokens, then grid tokens with the last axis fastest. Hosts that keep the projections
                pass projected tokens alone, and get the input of the output projection.
            grid_size: The grid of ``x``; by default that of the constructor.
            context: ``[B, M, context_dim]``, prefix tokens first.
            context_grid_size: The grid of ``context``; by default that of the constructor.
            attn_mask: Boolean ``[B, 1, 1, M]``, True where a key takes part.
            is_causal: Must be False; timm's blocks pass it.

        Returns:
            ``[B, N, C]``.
        """
        check_order(is_causal)
        if isinstance(x, Projected):
            return self.attend(*x)
        out = self.attend(*self._project(x, grid_size, context, context_grid_size, attn_mask))
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected

    def decompose(
        self,
        x: Tensor,
        grid_size: Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
        context_grid_size: Sequence[int] | None = None,
        attn_mask: Tensor | None = None,
    ) -> Decomposition:
        """Return the attention matrix and the other parts of the output: quadratic, for analysis, not training.

        Args: as :meth:`forward`.

        Returns:
            The parts: ``layer.proj(layer.decompose(x).output())`` is ``layer(x)`` without dropout, to rounding.

        Raises:
            ValueError: If the design has no ``weights``.

        Example:
            >>> from flatten_transformer.layers import create_attention
            >>> layer = create_attention("enhanced", dim=32, num_heads=2, grid_size=(5, 7))
            >>> layer.decompose(torch.randn(3, 35, 32)).matrix.shape
            torch.Size([3, 2, 35, 35])
        """
        return self.decompose_projected(*self._project(x, grid_size, context, context_grid_size, attn_mask))

    def _project(
        self,
        x: Tensor,
        grid_size: Sequence[int] | None,
        context: Tensor | None,
        context_grid_size: Sequence[int] | None,
        attn_mask: Tensor | None,
    ) -> Projected:
        """Return the projected tokens, or raise ValueError if tokens and grids do not fit."""
        on_one_grid = context_grid_size is grid_size
        own_grid = self._fit("x", x, grid_size)
        if self.context_dim is None:
            if context is not None or context_grid_size is not None:
                raise ValueError("this layer attends to x itself: build it with context_dim to pass a context")
            query, key, value = self.qkv(x).chunk(3, dim=2)
            return Projected(query, key, value, Layout(own_grid, own_grid, attn_mask), x)
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
        return Projected(self.q(x), key, value, Layout(own_grid, other_grid, attn_mask, cross=context is not x), x)

    def _reduce(self, x: Tensor, grid_size: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
        """Return the spatially reduced ``x`` as the context, and its grid."""
        if self.sr_ratio is None or self.sr_ratio == 1:
            return x, grid_size
        image = self.sr(pad_to_patches(x.transpose(1, 2).unflatten(2, tuple(grid_size)), self.sr_ratio))
        return self.sr_norm(image.flatten(2).transpose(1, 2)), image.shape[2:]

    def _fit(self, name: str, tokens: Tensor, grid_size: Sequence[int] | None) -> tuple[int, ...]:
        """Return the grid of ``tokens``, or raise ValueError if they do not fit it."""
        channels = self.dim if name == "x" else self.context_dim
        if tokens.ndim != 3 or tokens.shape[2] != channels:
            raise ValueError(f"{name} must be [batch, tokens, {channels}], got {shape_of(tokens)}")
        chosen = self.grid_size if grid_size is None else check_grid(grid_size, self.grid_size)
        expected = self.num_prefix_tokens + math.prod(chosen)
        if tokens.shape[1] != expected:
            raise ValueError(
                f"{name} has {tokens.shape[1]} tokens; {self.num_prefix_tokens} prefix tokens and the grid {chosen} "
                f"make {expected}: pass the grid of this input, grid_size=(height, width), or build the layer for these tokens"
            )
        return chosen

    # With projected tokens --------------------------------------------------------------------------------------------

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, x: Tensor | None = None) -> Tensor:
        """Return the attention ``[B, N, C]`` of projected tokens; the arguments are the fields of :class:`Projected`."""
        q, k, v = (split_heads(tokens, self.num_heads) for tokens in (query, key, value))
        return self.compute(q, k, v, layout, x)

    def compute(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, x: Tensor | None) -> Tensor:
        """Return ``[B, N, C]`` of split heads, ``[B, H, N, D]`` and twice ``[B, H, M, D]``: :meth:`mix` and all around it."""
        k, v = layout.hide(k, v)
        q, k = self.condition(q, k, layout)
        dtype = sum_dtype(q) if self.wide_sums else q.dtype
        with without_autocast(q.device.type) if self.wide_sums else nullcontext():
            out = self.mix(q.to(dtype), k.to(dtype), v.to(dtype), layout)
        self._check("mix", out, "[batch, heads, queries, channels]", (*q.shape[:3], v.shape[3]))
        out = out.to(v.dtype)
        return combine(merge_heads(out), self.restore(v, layout, x), self.gate(x))

    def decompose_projected(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, x: Tensor | None = None
    ) -> Decomposition:
        """Return the attention matrix of projected tokens and the other parts of the output: quadratic.

        Raises:
            ValueError: If the design has no ``weights``.
        """
        q, k, v = (split_heads(tokens, self.num_heads) for tokens in (query, key, value))
        k, v = layout.hide(k, v)
        q, k = self.condition(q, k, layout)
        matrix = self.weights(q, k, v.to(q.dtype), layout)
        groups = matrix.shape[1] if isinstance(matrix, Tensor) and matrix.ndim == 4 else self.num_heads
        self._check("weights", matrix, "[batch, groups, queries, keys]", (q.shape[0], groups, q.shape[2], k.shape[2]))
        matrix = matrix.to(v.dtype)
        return Decomposition(matrix, v, self.restore(v, layout, x), self.gate(x))

    def _check(self, method: str, result: object, meaning: str, shape: Sequence[int]) -> None:
        """Raise ValueError if a method of a subclass returns something else; recorded graphs hold no check."""
        if torch.compiler.is_compiling():
            return
        if not isinstance(result, Tensor) or tuple(result.shape) != tuple(shape):
            came = shape_of(result) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"{type(self).__name__}.{method} must return {meaning}, here {list(shape)}, got {came}")

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
        """Convolve the values ``[B, H, M, D]``, zero where masked, on the grid of the outputs: ``[B, N, C]``, or None."""
        if self.dwc is None:
            return None
        if self._kernel_count() != v.shape[3]:
            v = merge_heads(v)[:, None]  # [B, 1, M, C]: a kernel for each channel of all heads
        restored = convolve_values(self.dwc, self._values_at_outputs(v, layout), layout.grid_size)
        return merge_heads(F.pad(restored, (0, 0, self.num_prefix_tokens, 0)))

    def _values_at_outputs(self, v: Tensor, layout: Layout) -> Tensor:
        """Return the grid tokens of ``[B, H, M, D]``, stretched to the grid of the queries if that differs."""
        tokens = v[:, :, self.num_prefix_tokens :]
        if layout.in_place:
            return tokens
        return stretch_values(tokens, layout.context_grid_size, layout.grid_size, stretch=self.stretch)

    def key_encoding(self, grid_size: Sequence[int]) -> Tensor | None:
        """Return the encoding of the keys, resized to their grid, ``[H, M, D]``; zeros for prefix tokens."""
        if self.positional_encoding is None:
            return None
        encoding = resize_grid(self.positional_encoding, self.grid_size, grid_size)
        if self.num_prefix_tokens:
            encoding = F.pad(encoding, (0, 0, self.num_prefix_tokens, 0))
        return split_heads(encoding, self.num_heads)[0]

    def temperature(self) -> Tensor | None:
        """Return the positive temperature softplus(scale), ``[H, D]``, or None where it is switched off.

        It never falls below 1e-30, so that its reciprocal is finite: a channel that small outweighs all others.
        """
        if self.scale is None:
            return None
        scale = self.scale if self.scale.element_size() >= 4 else self.scale.float()
        return F.softplus(scale).clamp_min(1e-30).reshape(self.num_heads, -1)

    # Learned on a grid ------------------------------------------------------------------------------------------------

    def set_grid_size(self, grid_size: Sequence[int]) -> None:
        """Change the learned grid: resizes the parameters that lie on it."""
        old, self.grid_size = self.grid_size, check_grid(grid_size, self.grid_size)
        if self.positional_encoding is not None:
            resized = resize_grid(self.positional_encoding.detach(), old, self.grid_size)
            self.positional_encoding = nn.Parameter(resized, requires_grad=self.positional_encoding.requires_grad)

    def learned_grids(self) -> Mapping[str, Grid]:
        """Return the grid of the key encoding, if there is one."""
        return {} if self.positional_encoding is None else {"positional_encoding": self.grid_size}

    def fit_learned(
        self, tensors: MutableMapping[str, Tensor], prefix: str, known: Any = None, *, resuming: bool = False
    ) -> None:
        """Resize tensors from other grids, those of subclasses (:meth:`fit`) too."""
        super().fit_learned(tensors, prefix, known, resuming=resuming)
        for leaf, _ in self.named_parameters():
            if prefix + leaf in tensors and leaf != "positional_encoding":
                tensors[prefix + leaf] = self.fit(leaf, tensors[prefix + leaf])

    def extra_repr(self) -> str:
        """Show the options that no submodule shows."""
        return f"num_heads={self.num_heads}, grid_size={self.grid_size}, num_prefix_tokens={self.num_prefix_tokens}"


GridAttention.__signature__ = signature_of(GridAttention, GridOptions.__annotations__, GridAttention.defaults)
