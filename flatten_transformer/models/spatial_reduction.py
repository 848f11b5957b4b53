"""Attention of the pyramid families (PVT, PVTv2): keys and values from a map that a strided convolution may reduce."""

# B batch, N tokens of the map, C channels.

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import Attention
from torch import Tensor, nn

from flatten_transformer.layers import FocusedLinearAttention
from flatten_transformer.layers.rank_restoration import Stretch

Grid = tuple[int, int]
SOFTMAX_SR_RATIOS = (8, 4, 2, 1)  # of PVT and PVTv2 themselves


class PatchConv2d(nn.Conv2d):
    """A convolution over patches that do not overlap, for maps of any size.

    Args:
        in_channels: As in nn.Conv2d.
        out_channels: As in nn.Conv2d.
        patch_size: Side of a patch: kernel and stride.
        remainder: What happens right and bottom to rows and columns that fill no patch: ``"pad"`` fills them up with
            zeros, so that no pixel is lost; ``"drop"`` leaves them out as nn.Conv2d does, and pads only a map that is
            smaller than one patch.
        device: Where the parameters are made.
        dtype: Their dtype.

    Example:
        >>> PatchConv2d(3, 8, 4)(torch.rand(1, 3, 217, 333)).shape
        torch.Size([1, 8, 55, 84])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int,
        *,
        remainder: Literal["pad", "drop"] = "pad",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, patch_size, stride=patch_size, device=device, dtype=dtype)
        self.remainder = remainder

    def forward(self, image: Tensor) -> Tensor:
        """Return ``[B, out_channels, rows, columns]`` of ``[B, in_channels, height, width]``."""
        bottom, right = (self._padding(size) for size in image.shape[2:])
        # An exported graph with a free size must always pad; padding by nothing changes nothing.
        if torch.compiler.is_exporting() or bottom or right:
            image = F.pad(image, (0, right, 0, bottom))
        return super().forward(image)

    def _padding(self, size: int) -> int:
        patch = self.stride[0]
        if self.remainder == "drop":
            return patch - size if size < patch else 0  # not max(): a graph with a free size would keep it
        # not -size % patch: torch.compile cannot trace the modulo of a negative size that is free
        return (size + patch - 1) // patch * patch - size


class SpatialReductionFocusedAttention(FocusedLinearAttention):
    """Focused linear attention from every token of a map to the map reduced ``sr_ratio`` times.

    A map that is no multiple of ``sr_ratio`` is padded with zeros for the reduction: each reduced key then sees at
    least one true token, and no token is lost. The parameters carry the official names but for the norm after the
    reduction, ``sr_norm`` here: ``norm`` is an option of the layer.

    Args:
        dim: Channels C.
        num_heads: Heads; divides ``dim``.
        feat_size: The map the model is built for; the key encoding is learned on it, reduced.
        sr_ratio: Kernel and stride of the reduction; 1 attends to the map itself and has no convolution.
        qkv_bias: Learn biases in the projections ``q`` and ``kv``.
        proj_drop: Dropout probability after the output projection.
        focusing_factor: The power p ≥ 1 of the focused function.
        kernel_size: Side of the depthwise convolution; odd.
        stretch: How reduced values are stretched to the map before that convolution: along the ``"grid"``, or along
            the flattened ``"tokens"`` as the released code does.
        device: Where the parameters are made.
        dtype: Their dtype.

    Example:
        >>> attention = SpatialReductionFocusedAttention(64, 2, (56, 56), sr_ratio=8)
        >>> attention(torch.randn(1, 55 * 84, 64), (55, 84)).shape
        torch.Size([1, 4620, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: Grid,
        *,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        focusing_factor: float = 3.0,
        kernel_size: int = 5,
        stretch: Stretch = "grid",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            _reduce(feat_size, sr_ratio),
            context_dim=dim,
            qkv_bias=qkv_bias,
            proj_drop=proj_drop,
            focusing_factor=focusing_factor,
            kernel_size=kernel_size,
            stretch=stretch,
            device=device,
            dtype=dtype,
        )
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.sr = PatchConv2d(dim, dim, sr_ratio, device=device, dtype=dtype)
            self.sr_norm = nn.LayerNorm(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor, feat_size: Sequence[int]) -> Tensor:  # type: ignore[override]  # timm's signature
        """Attend from the tokens ``[B, N, C]`` of a map of ``feat_size`` to its reduction; returns ``[B, N, C]``."""
        context, context_size = x, feat_size
        if self.sr_ratio > 1:
            image = self.sr(x.transpose(1, 2).unflatten(2, tuple(feat_size)))
            context, context_size = self.sr_norm(image.flatten(2).transpose(1, 2)), image.shape[2:]
        return super().forward(x, feat_size, context=context, context_grid_size=context_size)

    def set_feat_size(self, feat_size: Grid) -> None:
        """Learn the key encoding for maps of ``feat_size`` from here on."""
        self.set_grid_size(_reduce(feat_size, self.sr_ratio))


class SpatialReductionAttention(Attention):
    """timm's softmax attention of PVTv2, the same numbers at every size; a map smaller than ``sr_ratio`` is padded to it.

    Args:
        dim: Channels C.
        num_heads: Heads; divides ``dim``.
        sr_ratio: Kernel and stride of the reduction.
        qkv_bias: Learn biases in the projections ``q`` and ``kv``.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability after the output projection.
        device: Where the parameters are made.
        dtype: Their dtype.

    Example:
        >>> attention = SpatialReductionAttention(64, 2, sr_ratio=8)
        >>> attention(torch.randn(1, 5 * 84, 64), (5, 84)).shape
        torch.Size([1, 420, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            dim, num_heads, sr_ratio=sr_ratio, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, **factory
        )
        if sr_ratio > 1:
            self.sr = PatchConv2d(dim, dim, sr_ratio, remainder="drop", device=device, dtype=dtype)


def build_attention(
    attn_type: str,
    dim: int,
    num_heads: int,
    feat_size: Grid,
    *,
    sr_ratio: int,
    qkv_bias: bool,
    attn_drop: float,
    proj_drop: float,
    focusing_factor: float,
    kernel_size: int,
    stretch: Stretch,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> SpatialReductionFocusedAttention | SpatialReductionAttention:
    """Return the attention of one block: ``"L"`` focused linear, ``"S"`` softmax; each takes of the options what it has."""
    if attn_type == "S":
        return SpatialReductionAttention(
            dim,
            num_heads,
            sr_ratio=sr_ratio,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )
    return SpatialReductionFocusedAttention(
        dim,
        num_heads,
        feat_size,
        sr_ratio=sr_ratio,
        qkv_bias=qkv_bias,
        proj_drop=proj_drop,
        focusing_factor=focusing_factor,
        kernel_size=kernel_size,
        stretch=stretch,
        device=device,
        dtype=dtype,
    )


def stage_sr_ratios(sr_ratios: int | Sequence[int] | None, attn_types: str) -> tuple[int, ...]:
    """Return the spatial reduction of each stage.

    Args:
        sr_ratios: One for all stages, one a stage, or None for the published layout: 1 in linear stages, which can
            afford the whole map, and 8, 4, 2, 1 in softmax stages.
        attn_types: One letter a stage.

    Raises:
        ValueError: If there is not one whole number of at least 1 a stage.

    Example:
        >>> stage_sr_ratios(None, "LLSS")
        (1, 1, 2, 1)
    """
    if sr_ratios is None:
        return tuple(ratio if letter == "S" else 1 for letter, ratio in zip(attn_types, SOFTMAX_SR_RATIOS, strict=True))
    ratios = (sr_ratios,) * len(attn_types) if isinstance(sr_ratios, int) else tuple(sr_ratios)
    if len(ratios) != len(attn_types) or not all(isinstance(ratio, int) and ratio >= 1 for ratio in ratios):
        raise ValueError(
            f"sr_ratios must be a whole number of at least 1 for each of {len(attn_types)} stages, "
            f"such as (8, 4, 2, 1), or one for all; got {sr_ratios!r}"
        )
    return ratios


def pyramid_feat_sizes(img_size: int | Sequence[int]) -> list[Grid]:
    """Return the maps of the four stages, rounded up: a fourth of the image, then a half each.

    Example:
        >>> pyramid_feat_sizes((217, 333))
        [(55, 84), (28, 42), (14, 21), (7, 11)]
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < 1:
        raise ValueError(f"img_size must be one or two positive sizes, such as 224 or (224, 320), got {img_size!r}")
    return [_reduce((height, width), ratio) for ratio in (4, 8, 16, 32)]


def set_feat_sizes(stages: nn.Module, feat_sizes: Sequence[Grid]) -> None:
    """Resize the key encodings of ``stages``, each a module with ``blocks``, to the maps they now are learned on."""
    for stage, feat_size in zip(stages.children(), feat_sizes, strict=False):  # feature extractors cut stages off
        for module in stage.modules():
            if isinstance(module, SpatialReductionFocusedAttention):
                module.set_feat_size(feat_size)


def rename_reduction_norms(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors with the official ``attn.norm`` of linear blocks as ``attn.sr_norm``."""
    owners = tuple(
        f"{name}.norm." for name, module in model.named_modules() if isinstance(module, SpatialReductionFocusedAttention)
    )
    return {
        name.replace(".attn.norm.", ".attn.sr_norm.") if name.startswith(owners) else name: value
        for name, value in state_dict.items()
    }


def _reduce(feat_size: Grid, ratio: int) -> Grid:
    return -(-feat_size[0] // ratio), -(-feat_size[1] // ratio)
