"""Looking at every attention of a model while it works on images: on a copy, so the model itself stays as it is."""

# B images, or windows of images; N queries, M keys, C channels = H heads × D channels per head.

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flatten_transformer.analysis.looks import Grid, GridLook, Look, SoftmaxLook
from flatten_transformer.layers import GridAttention
from flatten_transformer.layers.attention.layout import Layout

_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def capture(model: nn.Module, images: Tensor, *, dtype: torch.dtype = torch.float64) -> list[Look]:
    """Run a copy of a model once and return what each of its attentions was given and handed on, in order.

    Seen are GridAttention, so every linear block of this library in any family, windows and stripes included, and every
    call of ``F.scaled_dot_product_attention``, so the softmax blocks of timm's ViT, DeiT, Swin, PVTv2 and many more.

    Args:
        model: Any such model.
        images: ``[B, channels, height, width]``, as the model takes them.
        dtype: Of the copy: float64 leaves no doubt about a rank.

    Raises:
        ValueError: If no attention of the model can be seen.

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_deit_tiny_patch16_224", depth=2)
        >>> looks = capture(model, torch.rand(1, 3, 224, 224))
        >>> [look.name for look in looks]
        ['blocks.0.attn', 'blocks.1.attn']
        >>> looks[1].decompose().matrix.shape
        torch.Size([1, 3, 196, 196])
    """
    subject = copy.deepcopy(model).to(dtype).eval()
    watcher = _Watcher(subject, images)
    with torch.no_grad(), watcher:
        subject(images.to(next(subject.parameters())))
    if not watcher.looks:
        raise ValueError(
            f"no attention of {type(model).__name__} can be seen: take a FLatten model, or one that calls PyTorch's "
            "scaled_dot_product_attention, such as timm's vit_*, deit_*, swin_* and pvt_v2_*"
        )
    return watcher.looks


class _Watcher(TorchFunctionMode):
    """Notes what passes through the attentions of a model that is its own: the watches are never taken off."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.looks: list[Look] = []
        self._images = images.shape[0]
        self._image_size = (images.shape[2], images.shape[3])
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))
        self._running: list[str] = []  # names of the modules, from the outermost in
        self._within = False  # a GridAttention, whose softmax is no attention of its own
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._enter(name))
            module.register_forward_hook(self._leave)
            if hasattr(module, "fused_attn"):  # timm: the same numbers, where they can be seen
                module.fused_attn = True
            if isinstance(module, GridAttention):
                self._watch(name, module)

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self._running.append(name)

    def _leave(self, *_: object) -> None:
        self._running.pop()

    def _watch(self, name: str, attention: GridAttention) -> None:
        attend = attention.attend

        def watched(query: Tensor, key: Tensor, value: Tensor, layout: Layout, x: Tensor | None = None) -> Tensor:
            self._within = True
            out = attend(query, key, value, layout, x)
            self._within = False
            windows, prefix = query.shape[0] // self._images, attention.num_prefix_tokens
            grids = (tuple(layout.grid_size), tuple(layout.context_grid_size))
            seen = (name, type(attention).__name__, attention.num_heads, windows, prefix, *grids, out)
            self.looks.append(GridLook(*seen, attention, query, key, value, layout, x))
            return out

        attention.attend = watched  # type: ignore[method-assign]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of PyTorch, and note it if it is softmax attention."""
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and not self._within and out.ndim == 4:
            self._note_softmax(out, **dict(zip(_SDPA_ARGUMENTS, args, strict=False)), **(kwargs or {}))
        return out

    def _note_softmax(
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
        self.looks.append(SoftmaxLook(*seen, query, key, value, allowed, query.shape[3] ** -0.5 if scale is None else scale))

    def _grid(self, tokens: int, windows: int) -> Grid | None:
        return find_grid(tokens - self._prefix, self._image_size) if windows == 1 else None


def find_grid(tokens: int, image_size: Sequence[int]) -> Grid | None:
    """Return the grid of so many tokens that has the shape of the image, to an eighth; None if there is none.

    Example:
        >>> find_grid(196, (224, 224)), find_grid(24, (64, 96)), find_grid(197, (224, 224))
        ((14, 14), (4, 6), None)
    """
    wanted = image_size[0] / image_size[1]
    grids = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    fitting = [grid for grid in grids if abs(math.log(grid[0] / grid[1] / wanted)) < 1 / 8]
    return min(fitting, key=lambda grid: abs(math.log(grid[0] / grid[1] / wanted)), default=None)
