"""Capture every attention of a model on images, with the matrices that it never forms."""

# B images, or windows of images; N queries, M keys, C channels = H heads × D channels per head, G groups of value channels.

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flatten_transformer.layers import FocusedLinearAttention, GridAttention
from flatten_transformer.layers.attention.layout import Decomposition, Layout
from flatten_transformer.layers.rank_restoration import is_depthwise

_MAX_CHUNK = 2**24  # elements of the impulses that are convolved at once
_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

Grid = tuple[int, ...]


def capture(model: nn.Module, images: Tensor, *, dtype: torch.dtype = torch.float64) -> list[CapturedAttention]:
    """Run a copy of a model once; return the inputs and the output of each of its attentions, in order.

    It captures GridAttention, so every linear block of this library in any family, windows and stripes included, and calls
    of ``F.scaled_dot_product_attention``, so the softmax blocks of timm's ViT, DeiT, Swin, PVTv2 and many more.

    Args:
        model: A model with such attentions.
        images: Input of the model, ``[B, channels, height, width]``.
        dtype: The copy's dtype: float64 makes ranks unambiguous.

    Raises:
        ValueError: If no attention of the model can be captured.

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_deit_tiny_patch16_224", depth=2)
        >>> attentions = capture(model, torch.rand(1, 3, 224, 224))
        >>> [attention.name for attention in attentions]
        ['blocks.0.attn', 'blocks.1.attn']
        >>> attentions[1].decompose().matrix.shape
        torch.Size([1, 3, 196, 196])
    """
    network = copy.deepcopy(model).to(dtype).eval()
    recorder = _Recorder(network, images)
    with torch.no_grad(), recorder:
        network(images.to(next(network.parameters())))
    if not recorder.captured:
        raise ValueError(
            f"no attention of {type(model).__name__} can be seen: take a FLatten model, or one that calls PyTorch's "
            "scaled_dot_product_attention, such as timm's vit_*, deit_*, swin_* and pvt_v2_*"
        )
    return recorder.captured


@dataclass(frozen=True)
class CapturedAttention:
    """One attention of a model, with its inputs and output: from :func:`flatten_transformer.analysis.capture`.

    Args:
        name: The module's name in its model, such as ``blocks.3.attn``.
        design: Class of the attention, or ``softmax``.
        heads: Heads H.
        windows: Windows an image is cut into; 1: the whole image.
        num_prefix_tokens: Class and register tokens before the others.
        grid_size: The grid of the queries; None if unknown.
        context_grid_size: The grid of the keys; None if unknown.
        output: Input of the output projection, ``[B, N, C]``.
    """

    name: str
    design: str
    heads: int
    windows: int
    num_prefix_tokens: int
    grid_size: Grid | None
    context_grid_size: Grid | None
    output: Tensor

    @property
    def queries(self) -> int:
        """The number of queries N."""
        return self.output.shape[1]

    @property
    def head_dim(self) -> int:
        """Channels of a head D."""
        return self.output.shape[2] // self.heads

    @property
    def keys(self) -> int:
        """The number of keys M."""
        raise NotImplementedError

    def decompose(self) -> Decomposition:
        """Return the matrix ``[B, G, N, M]`` and the other parts of the output; quadratic."""
        raise NotImplementedError

    def convolution(self, channels: Sequence[int]) -> Tensor | None:
        """Return rank restoration as matrices, ``M_DWC`` of FLatten eq. (11): one for each channel, without the bias.

        Args:
            channels: Indices among the C channels of all heads.

        Returns:
            ``[B, len(channels), N, M]``, or None where the attention has no convolution. For channel c of head h,
            ``(matrix[g] + convolution) @ value`` is its output (eq. 12) but for bias and gate, g the group of c.
        """
        return None

    def equivalent(self, channels: Sequence[int], parts: Decomposition | None = None) -> Tensor:
        """Return the matrices that multiply the values of some channels, convolution included.

        Args:
            channels: Indices among the C channels of all heads.
            parts: From :meth:`decompose`, if already computed.

        Returns:
            ``[B, len(channels), N, M]``.
        """
        matrix = (self.decompose() if parts is None else parts).matrix
        chosen = matrix[:, self.groups(channels, matrix.shape[1])]
        convolution = self.convolution(channels)
        return chosen if convolution is None else chosen + convolution

    def groups(self, channels: Sequence[int], count: int) -> list[int]:
        """Return the group of each channel among ``count``."""
        return [channel * count // self.output.shape[2] for channel in channels]


@dataclass(frozen=True)
class CapturedGrid(CapturedAttention):
    """A call of a GridAttention, with or without projections of its own.

    Args:
        module: The attention.
        query: Projected tokens ``[B, N, C]``.
        key: ``[B, M, C]``.
        value: ``[B, M, C]``.
        layout: Where the tokens lie, and which keys take part.
        x: The tokens before the projection, ``[B, N, C]``.
    """

    module: GridAttention
    query: Tensor
    key: Tensor
    value: Tensor
    layout: Layout
    x: Tensor | None

    @property
    def keys(self) -> int:
        """The number of keys M."""
        return self.key.shape[1]

    @torch.no_grad()
    def decompose(self) -> Decomposition:
        """Return the matrix ``[B, G, N, M]`` and the other parts of the output; quadratic."""
        return self.module.decompose_projected(self.query, self.key, self.value, self.layout, self.x)

    @torch.no_grad()
    def convolution(self, channels: Sequence[int]) -> Tensor | None:
        """Return the responses to an impulse at each token, see :meth:`CapturedAttention.convolution`."""
        dwc = self.module.dwc
        plain = dwc is not None and is_depthwise(dwc) and type(self.module).restore is GridAttention.restore
        restore = self._restore_some if plain else self._restore_all
        batch, channel_count = self.output.shape[0], self.output.shape[2]
        bias = restore(torch.zeros(batch, 1, self.keys).to(self.output), channels)
        if bias is None:
            return None
        columns = []
        for impulses in torch.eye(self.keys).to(self.output).split(max(1, _MAX_CHUNK // (batch * self.keys * channel_count))):
            responses = restore(impulses.expand(batch, -1, -1), channels)
            assert responses is not None
            columns.append(responses - bias)  # [B, J, N, channels]
        matrix = torch.cat(columns, dim=1).permute(0, 3, 2, 1)
        hidden = self.layout.attn_mask
        return matrix if hidden is None else matrix.masked_fill(~hidden, 0)

    def _restore_all(self, values: Tensor, channels: Sequence[int]) -> Tensor | None:
        """Return some channels of the convolution, ``[B, J, N, channels]``, of values ``[B, J, M]`` that all channels share."""
        count = values.shape[1]
        mask, x = (None if t is None else t.repeat_interleave(count, 0) for t in (self.layout.attn_mask, self.x))
        v = values.flatten(0, 1)[:, None, :, None].expand(-1, self.heads, -1, self.head_dim)  # [B·J, H, M, D]
        restored = self.module.restore(v, self.layout._replace(attn_mask=mask), x)
        return None if restored is None else restored[..., list(channels)].unflatten(0, (-1, count))

    def _restore_some(self, values: Tensor, channels: Sequence[int]) -> Tensor | None:
        """Return the same from the kernels of these channels alone, where ``dwc`` does all of it: 50 times as fast."""
        dwc, count = self.module.dwc, len(channels)
        assert isinstance(dwc, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        options: dict[str, Any] = {"padding": dwc.padding, "groups": count, "bias": False, "device": "meta"}
        narrow = type(dwc)(count, count, dwc.kernel_size, **options)  # type: ignore[arg-type]  # one side for each axis
        narrow.weight = nn.Parameter(dwc.weight[[channel % dwc.weight.shape[0] for channel in channels]])
        v = values.flatten(0, 1)[:, None, :, None].expand(-1, -1, -1, len(channels))  # [B·J, 1, M, channels]
        restored = _changed(self.module, dwc=narrow).restore(v, self.layout, None)
        return None if restored is None else restored.unflatten(0, values.shape[:2])

    def refocused(self, focusing_factor: float) -> CapturedGrid:
        """Return a copy with another power p, to show what focusing does; 1 is plain ReLU linear attention.

        ``output`` stays that of the model.

        Raises:
            ValueError: If this is not focused linear attention.
        """
        if not isinstance(self.module, FocusedLinearAttention):
            raise ValueError(f"{self.name} is {self.design}, which has no focusing_factor: choose a focused linear attention")
        return replace(self, module=_changed(self.module, focusing_factor=focusing_factor))


def _changed(attention: GridAttention, **attributes: object) -> GridAttention:
    """Return a module around the same parameters, with other attributes."""
    other = copy.copy(attention)
    other._modules, other._parameters = dict(attention._modules), dict(attention._parameters)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


@dataclass(frozen=True)
class CapturedSoftmax(CapturedAttention):
    """A call of ``F.scaled_dot_product_attention``, as timm's models attend.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        bias: Added to the scores, -inf where a pair is masked: broadcast to ``[B, H, N, M]``; or None.
        scale: Factor of the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    scale: float

    @property
    def keys(self) -> int:
        """The number of keys M."""
        return self.key.shape[2]

    @torch.no_grad()
    def decompose(self) -> Decomposition:
        """Return the matrix ``[B, H, N, M]`` and the values; there is nothing else."""
        scores = self.query @ self.key.transpose(2, 3) * self.scale
        matrix = (scores if self.bias is None else scores + self.bias).softmax(dim=3)
        return Decomposition(matrix, self.value, None, None)


class _Recorder(TorchFunctionMode):
    """Record the attentions of a model; it owns the model, so hooks are never removed."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.captured: list[CapturedAttention] = []
        self._images = images.shape[0]
        self._image_size = (images.shape[2], images.shape[3])
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))
        self._running: list[str] = []  # names of the modules, from the outermost in
        self._within = False  # a GridAttention, whose softmax is not recorded by itself
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._enter(name))
            module.register_forward_hook(self._leave)
            if hasattr(module, "fused_attn"):  # timm's switch: the same numbers, by a call that can be recorded
                module.fused_attn = True
            if isinstance(module, GridAttention):
                self._record(name, module)

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self._running.append(name)

    def _leave(self, *_: object) -> None:
        self._running.pop()

    def _record(self, name: str, attention: GridAttention) -> None:
        attend = attention.attend

        def recorded(query: Tensor, key: Tensor, value: Tensor, layout: Layout, x: Tensor | None = None) -> Tensor:
            self._within = True
            out = attend(query, key, value, layout, x)
            self._within = False
            windows, prefix = query.shape[0] // self._images, attention.num_prefix_tokens
            grids = (tuple(layout.grid_size), tuple(layout.context_grid_size))
            seen = (name, type(attention).__name__, attention.num_heads, windows, prefix, *grids, out)
            self.captured.append(CapturedGrid(*seen, attention, query, key, value, layout, x))
            return out

        attention.attend = recorded  # type: ignore[method-assign]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of PyTorch, and record it if it is softmax attention."""
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and not self._within and out.ndim == 4:
            self._record_softmax(out, **dict(zip(_SDPA_ARGUMENTS, args, strict=False)), **(kwargs or {}))
        return out

    def _record_softmax(
        self,
        out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        windows, queries, keys = query.shape[0] // self._images, query.shape[2], key.shape[2]
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril() if is_causal else attn_mask
        if allowed is not None and allowed.dtype == torch.bool:
            allowed = torch.zeros_like(allowed, dtype=query.dtype).masked_fill(~allowed, -math.inf)
        grids = (self._grid(queries, windows), self._grid(keys, windows))
        prefix = self._prefix if windows == 1 else 0
        name = self._running[-1] or "the model itself"
        seen = (name, "softmax", query.shape[1], windows, prefix, *grids, out.transpose(1, 2).flatten(2))
        self.captured.append(
            CapturedSoftmax(*seen, query, key, value, allowed, query.shape[3] ** -0.5 if scale is None else scale)
        )

    def _grid(self, tokens: int, windows: int) -> Grid | None:
        return find_grid(tokens - self._prefix, self._image_size) if windows == 1 else None


def find_grid(tokens: int, image_size: Sequence[int]) -> Grid | None:
    """Return the grid of ``tokens`` with the image's aspect ratio, to an eighth; None if there is none.

    Example:
        >>> find_grid(196, (224, 224)), find_grid(24, (64, 96)), find_grid(197, (224, 224))
        ((14, 14), (4, 6), None)
    """
    ratio = image_size[0] / image_size[1]
    grids = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    fitting = [grid for grid in grids if abs(math.log(grid[0] / grid[1] / ratio)) < 1 / 8]
    return min(fitting, key=lambda grid: abs(math.log(grid[0] / grid[1] / ratio)), default=None)
