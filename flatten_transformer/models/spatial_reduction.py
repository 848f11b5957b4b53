"""Attention of the pyramid families (PVT, PVTv2): keys and values from a map that a strided convolution may reduce."""

# B batch, N tokens of the map, C channels.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.models.pvt_v2 import Attention
from torch import Tensor, nn

from flatten_transformer.layers import GridAttention
from flatten_transformer.layers.patches import pad_to_patches
from flatten_transformer.models.options import per_stage

Grid = tuple[int, int]
SOFTMAX_SR_RATIOS = (8, 4, 2, 1)  # of PVT and PVTv2 themselves


class SpatialReductionAttention(Attention):
    """timm's softmax attention of PVTv2, unchanged but for maps smaller than ``sr_ratio``, which are padded to it.

    Args:
        dim: Channels C.
        num_heads: Heads; divides ``dim``.
        sr_ratio: Kernel and stride of the reduction.
        options: As in timm: ``qkv_bias``, ``attn_drop``, ``proj_drop``, ``device``, ``dtype``.

    Example:
        >>> attention = SpatialReductionAttention(64, 2, sr_ratio=8)
        >>> attention(torch.randn(1, 5 * 84, 64), (5, 84)).shape
        torch.Size([1, 420, 64])
    """

    def __init__(self, dim: int, num_heads: int, *, sr_ratio: int = 1, **options: Any) -> None:
        super().__init__(dim, num_heads, sr_ratio=sr_ratio, **options)
        self.sr_ratio = sr_ratio

    def forward(self, x: Tensor, feat_size: Grid) -> Tensor:
        """Return ``[B, N, C]`` of tokens ``[B, N, C]`` of a map of ``feat_size``."""
        image = x.transpose(1, 2).unflatten(2, feat_size)
        padded = pad_to_patches(image, self.sr_ratio, remainder="drop")
        if padded is image:
            return self._attend(x, feat_size)
        larger: Grid = (padded.shape[2], padded.shape[3])
        out = self._attend(padded.flatten(2).transpose(1, 2), larger)  # padding attends too; its output is dropped
        return out.unflatten(1, larger)[:, : feat_size[0], : feat_size[1]].flatten(1, 2)

    def _attend(self, x: Tensor, feat_size: Grid) -> Tensor:
        out: Tensor = super().forward(x, feat_size)
        return out


def build_attention(
    attn_type: str,
    dim: int,
    num_heads: int,
    feat_size: Grid,
    sr_ratio: int,
    *,
    linear: Callable[..., GridAttention],
    softmax: Callable[..., SpatialReductionAttention],
) -> GridAttention | SpatialReductionAttention:
    """Return the attention of one block: ``"L"`` linear, ``"S"`` softmax, made by the function of that name.

    A map that is no multiple of ``sr_ratio`` is padded with zeros for the reduction of linear attention: each reduced
    key then sees at least one true token, and no token is lost. Key encodings are learned on the reduced map. Parameters
    have the official names, except for the norm after the reduction, ``sr_norm`` here.

    Example:
        >>> from flatten_transformer import FocusedLinearAttention
        >>> made = {"linear": FocusedLinearAttention, "softmax": SpatialReductionAttention}
        >>> attention = build_attention("L", 64, 2, (56, 56), 8, **made)
        >>> attention(torch.randn(1, 55 * 84, 64), (55, 84)).shape
        torch.Size([1, 4620, 64])
    """
    if attn_type == "S":
        return softmax(dim, num_heads, sr_ratio=sr_ratio)
    return linear(dim, num_heads, _reduce(feat_size, sr_ratio), sr_ratio=sr_ratio)


def block_sr_ratios(sr_ratios: int | Sequence[int] | None, attn_types: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the spatial reduction of each block, stage by stage.

    Args:
        sr_ratios: One for all stages, one a stage, or None for the published layout: 1 in linear blocks, which can
            afford the whole map, and 8, 4, 2, 1 in the softmax blocks of the stages.
        attn_types: The letters of each stage, one a block.

    Raises:
        ValueError: If there is not one whole number of at least 1 a stage.

    Example:
        >>> block_sr_ratios(None, ("LL", "SL", "SS", "S"))
        [(1, 1), (4, 1), (2, 2), (1,)]
    """
    if sr_ratios is None:
        return [
            tuple(ratio if letter == "S" else 1 for letter in letters)
            for letters, ratio in zip(attn_types, SOFTMAX_SR_RATIOS, strict=True)
        ]
    requirement = f"sr_ratios must be a whole number of at least 1 for each of {len(attn_types)} stages, such as (8, 4, 2, 1),"
    ratios = per_stage(sr_ratios, len(attn_types), f"{requirement} or one for all")
    return [(ratio,) * len(letters) for letters, ratio in zip(attn_types, ratios, strict=True)]


def pyramid_feat_sizes(img_size: int | Sequence[int]) -> list[Grid]:
    """Return the map sizes of the four stages, rounded up: a quarter of the image, then half each.

    Example:
        >>> pyramid_feat_sizes((217, 333))
        [(55, 84), (28, 42), (14, 21), (7, 11)]
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < 1:
        raise ValueError(f"img_size must be one or two positive sizes, such as 224 or (224, 320), got {img_size!r}")
    return [_reduce((height, width), ratio) for ratio in (4, 8, 16, 32)]


def set_feat_sizes(stages: nn.Module, feat_sizes: Sequence[Grid]) -> None:
    """Resize the key encodings of ``stages``, each a module with ``blocks``, to new map sizes."""
    for stage, feat_size in zip(stages.children(), feat_sizes, strict=False):  # feature extractors cut stages off
        for module in stage.modules():
            if isinstance(module, GridAttention):
                module.set_grid_size(_reduce(feat_size, module.sr_ratio or 1))


def rename_reduction_norms(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors with the official ``attn.norm`` of linear blocks as ``attn.sr_norm``."""
    owners = tuple(f"{name}.norm." for name, module in model.named_modules() if isinstance(module, GridAttention))
    return {
        name.replace(".attn.norm.", ".attn.sr_norm.") if name.startswith(owners) else name: value
        for name, value in state_dict.items()
    }


def _reduce(feat_size: Grid, ratio: int) -> Grid:
    return -(-feat_size[0] // ratio), -(-feat_size[1] // ratio)
