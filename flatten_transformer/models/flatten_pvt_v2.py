"""FLatten-PVTv2: timm's PyramidVisionTransformerV2 with focused linear attention in place of spatial reduction.

PVTv2 (arXiv 2106.13797) infers positions from its overlapping patches and the convolutions in its MLPs; FLatten
(arXiv 2308.00442) adds the key encoding of its attention and attends to the whole map in linear time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, pvt_v2, register_model
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor

from flatten_transformer.layers.rank_restoration import Stretch
from flatten_transformer.models.attention_choice import choose_attention, lists_attention_options, pop_attention_options
from flatten_transformer.models.build import build, default_cfg
from flatten_transformer.models.fit_weights import accept_official_names, checkpoint_filter_fn
from flatten_transformer.models.options import check_attn_drop, expand_attn_types
from flatten_transformer.models.spatial_reduction import (
    SpatialReductionAttention,
    block_sr_ratios,
    build_attention,
    pyramid_feat_sizes,
    rename_reduction_norms,
    set_feat_sizes,
)

__all__ = ["FlattenPyramidVisionTransformerV2"]


class FlattenPyramidVisionTransformerV2(PyramidVisionTransformerV2):
    """A PVTv2 whose blocks attend by focused linear attention, at any image size.

    Args:
        img_size: Side, or height and width, of the images whose maps the key encodings are learned on; images of
            other sizes pass too.
        attn_types: ``"L"`` linear (see ``attention``) or ``"S"`` softmax attention with spatial reduction; one letter for all
            blocks, one a stage, or one a block, where hyphens may set the stages apart: ``"L-LS-S-S"``.
        sr_ratios: Spatial reduction of keys and values, one for all stages or one a stage. None: 1 in linear
            blocks and PVTv2's own 8, 4, 2, 1 in softmax blocks, as released.
        stretch: How reduced values are stretched to the map before the depthwise convolution: along the ``"grid"``,
            or along the flattened ``"tokens"`` as released, which mixes rows.
        qkv_bias: Learn biases in the projections of queries, keys and values.
        proj_drop_rate: Dropout probability after the projections of attention and MLP.
        attn_drop_rate: Dropout probability of the weights of softmax attention.
        kwargs: The keywords of :class:`flatten_transformer.models.AttentionOptions`, and every other one of timm's
            PyramidVisionTransformerV2, except ``linear``, its pooled attention, which raises.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_pvt_v2_b0", num_classes=10).eval()
        >>> model(torch.randn(1, 3, 96, 130)).shape
        torch.Size([1, 10])
    """

    @lists_attention_options
    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        attn_types: str = "LLLL",
        sr_ratios: int | Sequence[int] | None = None,
        stretch: Stretch = "grid",
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        attention = pop_attention_options(kwargs)
        if kwargs.pop("linear", False):
            raise ValueError('linear is timm\'s pooled softmax attention: leave it out and choose by attn_types, "L" or "S"')
        super().__init__(sr_ratios=(1, 1, 1, 1), qkv_bias=qkv_bias, proj_drop_rate=proj_drop_rate, **kwargs)
        letters = expand_attn_types(attn_types, [len(stage.blocks) for stage in self.stages])
        check_attn_drop(attn_drop_rate, attn_types)
        shared: dict[str, Any] = {"qkv_bias": qkv_bias, "proj_drop": proj_drop_rate}
        shared |= {name: kwargs.get(name) for name in ("device", "dtype")}
        build = partial(
            build_attention,
            linear=choose_attention(type(self), attention, stretch=stretch, **shared),
            softmax=partial(SpatialReductionAttention, attn_drop=attn_drop_rate, **shared),
        )
        layout = zip(self.stages, letters, block_sr_ratios(sr_ratios, letters), pyramid_feat_sizes(img_size), strict=True)
        for stage, types, ratios, feat_size in layout:
            for block, letter, ratio in zip(stage.blocks, types, ratios, strict=True):
                attn = build(letter, block.attn.dim, block.attn.num_heads, feat_size, ratio)
                block.attn = attn.apply(self._init_weights)
        accept_official_names(self, convert)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Change the size the model is built for; key encodings are resized to it."""
        set_feat_sizes(self.stages, pyramid_feat_sizes(img_size))


def convert(state_dict: Mapping[str, Tensor], model: FlattenPyramidVisionTransformerV2) -> dict[str, Tensor]:
    """Return the tensors by timm's names; unknown keys pass through."""
    return rename_reduction_norms(dict(pvt_v2.checkpoint_filter_fn(state_dict, model)), model)


_create: Callable[..., FlattenPyramidVisionTransformerV2] = partial(
    build,
    FlattenPyramidVisionTransformerV2,
    filter_fn=checkpoint_filter_fn,
    feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
)
_cfg = partial(default_cfg, first_conv="patch_embed.proj", classifier="head")
default_cfgs = generate_default_cfgs(
    {
        "flatten_pvt_v2_b0": _cfg("5d1f01532b104da28e7b"),
        "flatten_pvt_v2_b1": _cfg(),  # no weights were published from here on
        "flatten_pvt_v2_b2": _cfg(),
        "flatten_pvt_v2_b3": _cfg(),
        "flatten_pvt_v2_b4": _cfg(),
        "flatten_pvt_v2_b5": _cfg(),
    }
)

_WIDE = {"embed_dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8), "mlp_ratios": (8, 8, 4, 4)}


@register_model
def flatten_pvt_v2_b0(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformerV2:
    """FLatten-PVTv2-B0: 3.59 M parameters; 71.1 % ImageNet top-1 in the paper."""
    sizes = _WIDE | {"embed_dims": (32, 64, 160, 256), "depths": (2, 2, 2, 2)}
    return _create("flatten_pvt_v2_b0", pretrained, **(sizes | kwargs))


@register_model
def flatten_pvt_v2_b1(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformerV2:
    """FLatten-PVTv2-B1; 79.5 % ImageNet top-1 in the paper."""
    return _create("flatten_pvt_v2_b1", pretrained, **(_WIDE | {"depths": (2, 2, 2, 2)} | kwargs))


@register_model
def flatten_pvt_v2_b2(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformerV2:
    """FLatten-PVTv2-B2; 82.5 % ImageNet top-1 in the paper."""
    return _create("flatten_pvt_v2_b2", pretrained, **(_WIDE | {"depths": (3, 4, 6, 3)} | kwargs))


@register_model
def flatten_pvt_v2_b3(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformerV2:
    """FLatten-PVTv2-B3."""
    return _create("flatten_pvt_v2_b3", pretrained, **(_WIDE | {"depths": (3, 4, 18, 3)} | kwargs))


@register_model
def flatten_pvt_v2_b4(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformerV2:
    """FLatten-PVTv2-B4."""
    return _create("flatten_pvt_v2_b4", pretrained, **(_WIDE | {"depths": (3, 8, 27, 3)} | kwargs))


@register_model
def flatten_pvt_v2_b5(pretrained: bool = False, **kwargs: Any) -> FlattenPyramidVisionTransformerV2:
    """FLatten-PVTv2-B5."""
    sizes = _WIDE | {"depths": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)}
    return _create("flatten_pvt_v2_b5", pretrained, **(sizes | kwargs))
