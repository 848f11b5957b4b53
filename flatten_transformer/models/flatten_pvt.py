"""FLatten-PVT: the Pyramid Vision Transformer with focused linear attention in place of spatial reduction.

PVT (arXiv 2102.12122) shrinks keys and values to afford attention on large maps; FLatten (arXiv 2308.00442) attends to
the whole map in linear time instead. No class token: the last map is averaged. timm has no PVT v1, so the host is written here.
"""

# B batch, N tokens of a map, C channels.

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Unpack

from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.layers.learned_grids import LearnsOnGrid
from flatten_transformer.layers.patches import pad_to_patches
from flatten_transformer.layers.rank_restoration import Stretch
from flatten_transformer.models.attention_choice import AttentionOptions, choose_attention, lists_attention_options
from flatten_transformer.models.build import build, default_cfg
from flatten_transformer.models.fit_weights import accept_official_names, checkpoint_filter_fn
from flatten_transformer.models.options import check_attn_drop, expand_attn_types
from flatten_transformer.models.pyramid import Pyramid
from flatten_transformer.models.spatial_reduction import (
    Grid,
    SpatialReductionAttention,
    block_sr_ratios,
    build_attention,
    pyramid_feat_sizes,
    rename_reduction_norms,
    set_feat_sizes,
)

__all__ = ["FlattenPyramidVisionTransformer"]

_EPS = 1e-6  # of the norms around attention and MLP; the others keep PyTorch's 1e-5, as released


class PatchEmbed(nn.Module):
    """Split a map into patches, one token each, and normalise them; incomplete patches are padded.

    Args:
        in_chans: Channels of the map.
        dim: Channels C of the tokens.
        patch_size: Side of a patch.
        factory: Device and dtype.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, **factory: Any) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **factory)
        self.norm = nn.LayerNorm(dim, **factory)

    def forward(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Return tokens ``[B, N, C]`` and their map of ``[B, in_chans, height, width]``."""
        patches = self.proj(pad_to_patches(image, self.patch_size))
        return self.norm(patches.flatten(2).transpose(1, 2)), (patches.shape[2], patches.shape[3])


class PyramidBlock(nn.Module):
    """Attention, then an MLP, each behind a norm and beside a shortcut.

    Args:
        attn: Called with tokens and the size of their map.
        dim: Channels C.
        mlp_ratio: Hidden channels of the MLP over C.
        proj_drop: Dropout probability in the MLP.
        drop_path: Probability to drop a branch, for each sample.
        factory: Device and dtype.
    """

    def __init__(
        self, attn: nn.Module, dim: int, *, mlp_ratio: float, proj_drop: float = 0.0, drop_path: float = 0.0, **factory: Any
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_EPS, **factory)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=_EPS, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **factory)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, feat_size: Grid) -> Tensor:
        """Return ``[B, N, C]`` of tokens ``[B, N, C]`` of a map of ``feat_size``."""
        x = x + self.drop_path1(self.attn(self.norm1(x), feat_size))
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out


class PyramidStage(LearnsOnGrid, nn.Module):
    """Patches of the previous map, their position encoding, and blocks.

    Args:
        patch_embed: From the previous map to tokens.
        blocks: The blocks.
        dim: Channels C.
        feat_size: The map the position encoding is learned on; it is resized to others.
        pos_drop: Dropout probability after the position encoding.
        factory: Device and dtype.
    """

    grad_checkpointing = False

    def __init__(
        self,
        patch_embed: PatchEmbed,
        blocks: Sequence[PyramidBlock],
        dim: int,
        feat_size: Grid,
        *,
        pos_drop: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.feat_size = feat_size
        self.patch_embed = patch_embed
        self.pos_embed = nn.Parameter(torch.zeros(1, feat_size[0] * feat_size[1], dim, **factory))
        self.pos_drop = nn.Dropout(pos_drop)
        self.blocks = nn.ModuleList(blocks)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the position encoding: normal with deviation 0.02."""
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Return the map ``[B, C, rows, columns]`` of the previous one, ``[B, in_chans, height, width]``."""
        x, feat_size = self.patch_embed(image)
        x = self.pos_drop(x + resize_grid(self.pos_embed, self.feat_size, feat_size))
        for block in self.blocks:
            x = checkpoint(block, x, feat_size, use_reentrant=False) if self.grad_checkpointing else block(x, feat_size)
        return x.transpose(1, 2).unflatten(2, feat_size).contiguous()

    def learned_grids(self) -> Mapping[str, Grid]:
        """Return the grid of the position encoding."""
        return {"pos_embed": self.feat_size}

    def set_feat_size(self, feat_size: Grid) -> None:
        """Learn the position encoding on a map of ``feat_size`` from here on."""
        resized = resize_grid(self.pos_embed.detach(), self.feat_size, feat_size)
        self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        self.feat_size = feat_size


class FlattenPyramidVisionTransformer(Pyramid):
    """PVT whose blocks attend by focused linear attention, at any image size.

    Args:
        img_size: Side, or height and width, of the images whose maps the position and key encodings are learned on.
            Images of other sizes pass too: encodings are resized, and incomplete patches are padded.
        in_chans: Channels of the images.
        num_classes: Classes; 0: no classifier.
        global_pool: ``"avg"``, or ``""`` to keep the map.
        depths: Blocks of each of four stages.
        embed_dims: Channels of each stage.
        num_heads: Heads of each stage.
        mlp_ratios: Hidden channels of the MLPs over channels, of each stage.
        qkv_bias: Learn biases in the projections of queries, keys and values.
        attn_types: ``"L"`` linear (see ``attention``) or ``"S"`` softmax attention with spatial reduction; one letter for all
            blocks, one a stage, or one a block, where hyphens may set the stages apart: ``"L-LS-S-S"``.
        sr_ratios: Spatial reduction of keys and values, one for all stages or one a stage. None: 1 in linear
            blocks and PVT's own 8, 4, 2, 1 in softmax blocks, as released.
        stretch: How reduced values are stretched to the map before the depthwise convolution: along the ``"grid"``,
            or along the flattened ``"tokens"`` as released, which mixes rows.
        drop_rate: Dropout probability before the classifier.
        pos_drop_rate: Dropout probability after the position encodings.
        proj_drop_rate: Dropout probability after the projections of attention and MLP.
        attn_drop_rate: Dropout probability of the weights of softmax attention.
        drop_path_rate: Largest probability to drop a branch; grows linearly from 0 over the blocks.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        attention_options: Attention of the linear blocks, see :class:`flatten_transformer.models.AttentionOptions`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_pvt_tiny", num_classes=10).eval()
        >>> model(torch.randn(1, 3, 96, 130)).shape
        torch.Size([1, 10])
    """

    @lists_attention_options
    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (2, 2, 2, 2),
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        attn_types: str = "LLLL",
        sr_ratios: int | Sequence[int] | None = None,
        stretch: Stretch = "grid",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **attention_options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        letters = expand_attn_types(attn_types, depths)
        ratios = block_sr_ratios(sr_ratios, letters)
        check_attn_drop(attn_drop_rate, attn_types)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        feat_sizes = pyramid_feat_sizes(img_size)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shared = {"qkv_bias": qkv_bias, "proj_drop": proj_drop_rate, **factory}
        build = partial(
            build_attention,
            linear=choose_attention(type(self), attention_options, stretch=stretch, **shared),
            softmax=partial(SpatialReductionAttention, attn_drop=attn_drop_rate, **shared),
        )

        def build_stage(i: int) -> PyramidStage:
            dim = embed_dims[i]
            blocks = [
                PyramidBlock(
                    build(letter, dim, num_heads[i], feat_sizes[i], ratio),
                    dim,
                    mlp_ratio=mlp_ratios[i],
                    proj_drop=proj_drop_rate,
                    drop_path=drop_path,
                    **factory,
                )
                for letter, ratio, drop_path in zip(letters[i], ratios[i], drop_paths[i], strict=True)
            ]
            patch_embed = PatchEmbed(embed_dims[i - 1], dim, 2, **factory) if i else PatchEmbed(in_chans, dim, 4, **factory)
            return PyramidStage(patch_embed, blocks, dim, feat_sizes[i], pos_drop=pos_drop_rate, **factory)

        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = _check_pool(global_pool)
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.feature_info = [{"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(embed_dims)]
        self.stages = nn.Sequential(*(build_stage(i) for i in range(len(depths))))
        # The released model owns this norm and never applies it. It is kept so that official files fit and the parameter
        # count is as published, and frozen because distributed training waits for every trainable parameter.
        self.norm = nn.LayerNorm(self.num_features, eps=_EPS, **factory).requires_grad_(False)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes, **factory) if num_classes else nn.Identity()
        self.apply(_init_weights)
        accept_official_names(self, convert)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the last map: ``[B, num_classes]``, or ``[B, C]`` before the classifier."""
        if self.global_pool:
            x = x.mean(dim=(2, 3))
        x = self.head_drop(x)
        scores: Tensor = x if pre_logits else self.head(x)
        return scores

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier: ``num_classes`` classes, 0 for none; optionally another pooling."""
        if global_pool is not None:
            self.global_pool = _check_pool(global_pool)
        self.num_classes, self.head_hidden_size = num_classes, self.num_features
        like = next(self.stages.parameters())
        head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype) if num_classes else nn.Identity()
        self.head = head.apply(_init_weights).train(self.training)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Change the size the model is built for; position and key encodings are resized to it."""
        feat_sizes = pyramid_feat_sizes(img_size)
        for stage, feat_size in zip(self.stages, feat_sizes, strict=False):  # feature extractors cut stages off
            stage.set_feat_size(feat_size)
        set_feat_sizes(self.stages, feat_sizes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns that sort parameters into layers, for layer-wise learning rates."""
        fine = [(r"^stages\.(\d+)\.(?:patch_embed|pos_embed)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stages\.0\.(?:patch_embed|pos_embed)", "blocks": r"^stages\.(\d+)" if coarse else fine}


def _check_pool(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f'global_pool must be "avg" or "" (none): there is no class token; got {global_pool!r}')
    return global_pool


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_OFFICIAL = re.compile(r"^(patch_embed|pos_embed|block)(\d+)")


def convert(state_dict: Mapping[str, Tensor], model: FlattenPyramidVisionTransformer) -> dict[str, Tensor]:
    """Return the tensors by our names, without the position of PVT's class token; unknown keys pass through, its token too."""
    named = {_OFFICIAL.sub(_own_name, name): value for name, value in state_dict.items()}
    last = f"stages.{len(model.stages) - 1}.pos_embed"
    if "cls_token" in named and last in named and named[last].ndim == 3 and not _is_square(named[last].shape[1]):
        named[last] = named[last][:, 1:]
    return rename_reduction_norms(named, model)


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def _own_name(official: re.Match[str]) -> str:
    part, number = official.groups()
    return f"stages.{int(number) - 1}.{'blocks' if part == 'block' else part}"


_create: Callable[..., FlattenPyramidVisionTransformer] = partial(
    build,
    FlattenPyramidVisionTransformer,
    filter_fn=checkpoint_filter_fn,
    feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
)
_cfg = partial(default_cfg, first_conv="stages.0.patch_embed.proj", classifier="head")
default_cfgs = generate_default_cfgs(
    {
        "flatten_pvt_tiny": _cfg("3ab1d773f19d45648690"),
        "flatten_pvt_small": _cfg(),  # no weights were published from here on
        "flatten_pvt_medium": _cfg(),
        "flatten_pvt_large": _cfg(),
    }
)


@register_model
def flatten_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformer:
    """FLatten-PVT-T: 12.15 M parameters; 77.8 % ImageNet top-1 in the paper."""
    return _create("flatten_pvt_tiny", pretrained, **({"depths": (2, 2, 2, 2)} | kwargs))


@register_model
def flatten_pvt_small(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformer:
    """FLatten-PVT-S; 81.7 % ImageNet top-1 in the paper."""
    return _create("flatten_pvt_small", pretrained, **({"depths": (3, 4, 6, 3)} | kwargs))


@register_model
def flatten_pvt_medium(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformer:
    """FLatten-PVT-M."""
    return _create("flatten_pvt_medium", pretrained, **({"depths": (3, 4, 18, 3)} | kwargs))


@register_model
def flatten_pvt_large(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformer:
    """FLatten-PVT-L."""
    return _create("flatten_pvt_large", pretrained, **({"depths": (3, 8, 27, 3)} | kwargs))
