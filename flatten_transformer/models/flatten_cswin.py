"""FLatten-CSwin: a cross-shaped window Transformer with focused linear attention over whole maps in its first stages.

CSWin (arXiv 2107.00652) lets half of the channels attend in vertical and half in horizontal stripes, and adds a
convolution of the values, its locally-enhanced positional encoding. FLatten Transformer (arXiv 2308.00442) is cheap
enough to widen the stripes of the early stages to the whole map. timm has no CSWin, so the host is written here.
"""

# B batch, W windows of a map, N tokens of a window, C channels.

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, DropPath, Mlp, calculate_drop_path_rates
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from timm.models._input import update_model_input_size
from torch import Tensor, nn
from typing_extensions import Unpack

from flatten_transformer.layers import GridAttention
from flatten_transformer.layers.attention.base import Projected
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.rank_restoration import convolve_values, depthwise_convolution
from flatten_transformer.layers.windows import Windows
from flatten_transformer.models.attention_choice import AttentionOptions, choose_attention, lists_attention_options
from flatten_transformer.models.build import build, default_cfg
from flatten_transformer.models.fit_weights import accept_official_names, checkpoint_filter_fn
from flatten_transformer.models.options import check_attn_drop, expand_attn_types, per_stage
from flatten_transformer.models.pyramid import Pyramid

__all__ = ["FlattenCSwinTransformer"]

Size = tuple[int, int]


class ConvNorm(nn.Module):
    """A strided convolution of an image and a norm over its channels: overlapping patches.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels C of the map.
        kernel_size: Side of the kernel.
        stride: How many times smaller the map is.
        padding: Zeros at each border.
        factory: Device and dtype.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int, **factory: Any) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, **factory)
        self.norm = nn.LayerNorm(out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, height, width, C]`` of ``[B, channels, height, width]``."""
        out: Tensor = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return out

    def feat_size(self, size: Size) -> Size:
        """Return height and width of the map of an image of this size."""
        height, width = ((side + 2 * self.padding - self.kernel_size) // self.stride + 1 for side in size)
        return height, width


class Merge(ConvNorm):
    """The convolution between two stages, from map to map: half the size, twice the channels.

    Args:
        dim: Channels before.
        factory: Device and dtype.
    """

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__(dim, 2 * dim, kernel_size=3, stride=2, padding=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, height / 2, width / 2, 2 C]`` of ``[B, height, width, C]``."""
        return super().forward(x.permute(0, 3, 1, 2))


def linear_stripes(linear: partial[GridAttention], dim: int, num_heads: int, grid_size: Size, **factory: Any) -> GridAttention:
    """Return linear attention for stripes: without projections, and with CSwin's own convolution of the values.

    Args:
        linear: Factory of the attention.
        dim: Channels of this branch.
        num_heads: Heads of this branch.
        grid_size: The window the key encoding is learned on.
        factory: Device and dtype.
    """
    attn = linear(dim, num_heads, grid_size, **factory)
    attn.get_v = depthwise_convolution(dim, 3, axes=2, **factory)  # its name in official checkpoints
    return attn


def attend_in_stripes(attn: GridAttention, x: Tensor, qkv: Tensor, windows: Windows) -> Tensor:
    """Attend within windows, and add the locally-enhanced positional encoding ``get_v``.

    Args:
        attn: From :func:`linear_stripes`.
        x: Tokens before projection, ``[B·W, N, C]``: the channels of this branch.
        qkv: ``[B·W, N, 3 C]``.
        windows: Windows of the map.

    Returns:
        ``[B·W, N, C]``.
    """
    query, key, value = qkv.chunk(3, dim=2)
    window = windows.window_size
    out: Tensor = attn(Projected(query, key, value, Layout(window, window, windows.key_mask(qkv)), x))
    return out + _enhance(attn.get_v, value, window)  # type: ignore[arg-type]  # a module, to the type checker


class SoftmaxStripes(nn.Module):
    """Softmax attention within windows, plus the locally-enhanced positional encoding ``get_v``.

    Args:
        dim: Channels of this branch.
        num_heads: Heads of this branch.
        attn_drop: Dropout probability of the attention weights.
        factory: Device and dtype.
    """

    def __init__(self, dim: int, num_heads: int, *, attn_drop: float, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.get_v = depthwise_convolution(dim, 3, axes=2, **factory)

    def forward(self, qkv: Tensor, windows: Windows) -> Tensor:
        """Return ``[B·W, N, C]`` of ``[B·W, N, 3 C]``."""
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)  # each [B·W, heads, N, D]
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=windows.key_mask(qkv), dropout_p=self.attn_drop if self.training else 0.0
        )
        return out.transpose(1, 2).flatten(2) + _enhance(self.get_v, qkv.chunk(3, dim=2)[2], windows.window_size)


class CrossShapedBlock(nn.Module):
    """A Transformer block that attends in stripes: half the channels in vertical, half in horizontal ones.

    Where one stripe holds the whole map, one branch with all heads attends.

    Args:
        dim: Channels C.
        num_heads: Heads of all branches together.
        feat_size: The map the block is built for.
        stripe: Width of a stripe; None: the whole map.
        mlp_ratio: Hidden channels of the MLP, in C.
        qkv_bias: Learn biases in the projections of queries, keys and values.
        proj_drop: Dropout probability after the projections of attention and MLP.
        attn_drop: Dropout probability of the weights of softmax attention.
        drop_path: Probability to drop a residual branch.
        linear: Factory of linear attention; None: softmax attention.
        factory: Device and dtype.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: Size,
        *,
        stripe: int | None,
        mlp_ratio: float,
        qkv_bias: bool,
        proj_drop: float,
        attn_drop: float,
        drop_path: float,
        linear: partial[GridAttention] | None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.stripe = stripe
        self.branches = 1 if stripe is None else 2
        if num_heads % self.branches:
            raise ValueError(f"num_heads must be even where two kinds of stripes share the heads, got {num_heads}")
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        shares = (dim // self.branches, num_heads // self.branches)
        self.attns = nn.ModuleList()
        for branch in range(self.branches):
            if linear is None:
                self.attns.append(SoftmaxStripes(*shares, attn_drop=attn_drop, **factory))
                continue
            window = self.windows(branch, feat_size).window_size
            attn = linear_stripes(linear, *shares, window, **factory)
            attn.fixed_axis = None if stripe is None else 1 - branch  # the axis across which stripes are narrow
            self.attns.append(attn)
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **factory)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, height, width, C]``."""
        x = x + self.drop_path1(self.proj_drop(self.proj(self._attend(self.norm1(x)))))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def windows(self, branch: int, feat_size: Size) -> Windows:
        """Return the stripes of a map of this size: vertical in branch 0, horizontal in branch 1."""
        height, width = feat_size
        if self.stripe is None:
            return Windows(feat_size, feat_size)
        if branch == 0:
            return Windows(feat_size, (height, min(self.stripe, width)))
        return Windows(feat_size, (min(self.stripe, height), width))

    def _attend(self, x: Tensor) -> Tensor:
        """Attend in all branches, their channels side by side, ``[B, height, width, C]``."""
        shares = self.qkv(x).unflatten(3, (3, self.branches, -1)).unbind(4)  # each [B, height, width, 3, C / branches]
        own = x.unflatten(3, (self.branches, -1)).unbind(3)  # each [B, height, width, C / branches]
        outs = []
        for branch, (attn, qkv) in enumerate(zip(self.attns, shares, strict=True)):
            windows = self.windows(branch, (x.shape[1], x.shape[2]))
            tokens = windows.split(qkv.flatten(3))
            if isinstance(attn, GridAttention):
                out = attend_in_stripes(attn, windows.split(own[branch]), tokens, windows)
            else:
                out = attn(tokens, windows)
            outs.append(windows.join(out))
        return torch.cat(outs, dim=3)

    def set_input_size(self, feat_size: Size) -> None:
        """Build the block for another map; key encodings are resized, stripes keep their width."""
        for branch, attn in enumerate(self.attns):
            if isinstance(attn, GridAttention):
                attn.set_grid_size(self.windows(branch, feat_size).window_size)


class CrossShapedStage(nn.Module):
    """A merge, but in the first stage, and blocks; recomputes them in the backward pass where checkpointing is on.

    Args:
        downsample: Merge of the previous stage's map.
        blocks: The blocks.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[CrossShapedBlock]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, height, width, C]``."""
        x = self.downsample(x)
        out: Tensor = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return out


class FlattenCSwinTransformer(Pyramid):
    """A CSWin Transformer whose blocks attend by focused linear or by softmax attention, at any image size.

    Args:
        img_size: Side, or height and width, of the images whose maps the key encodings are learned on; images of
            other sizes pass too.
        in_chans: Channels of the images.
        num_classes: Classes; 0: no classifier.
        global_pool: Pooling of the last map.
        embed_dim: Channels of the first stage; each following one has twice as many.
        depths: Blocks a stage.
        num_heads: Heads a stage.
        attn_types: ``"L"`` linear (see ``attention``) or ``"S"`` softmax attention; one letter for all blocks, one a stage, or
            one a block, where hyphens may set the stages apart: ``"L-L-SLSL…-S"``.
        split_sizes: Width of the stripes of the linear blocks: one for all stages or one a stage. None: the whole
            map, as released. Stripes as wide as the map it is built for are the whole map, at any image size, and
            the last stage always attends to it.
        softmax_split_sizes: Width of the stripes of the softmax blocks: one for all stages or one a stage.
        mlp_ratio: Hidden channels of the MLP, in channels of the stage.
        qkv_bias: Learn biases in the projections of queries, keys and values.
        drop_rate: Dropout probability before the classifier.
        proj_drop_rate: Dropout probability after the projections of attention and MLP.
        attn_drop_rate: Dropout probability of the weights of softmax attention.
        drop_path_rate: Probability to drop the last residual branch; it grows linearly from 0.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        attention_options: Attention of the linear blocks, see :class:`flatten_transformer.models.AttentionOptions`.

    Raises:
        ValueError: If an option is out of range or has no meaning in these blocks.

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_cswin_tiny_224", num_classes=10).eval()
        >>> model(torch.randn(1, 3, 96, 128)).shape
        torch.Size([1, 10])
    """

    channels_last = True
    output_fmt = "NHWC"

    @lists_attention_options
    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 4, 18, 1),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        attn_types: str = "LLSS",
        split_sizes: int | Sequence[int] | None = None,
        softmax_split_sizes: int | Sequence[int] = (1, 2, 7, 7),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **attention_options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        letters = expand_attn_types(attn_types, depths)
        check_attn_drop(attn_drop_rate, attn_types)
        linear = choose_attention(type(self), attention_options, projections=False)
        stripes = {
            "L": [None] * len(depths) if split_sizes is None else _stripes("split_sizes", split_sizes, len(depths)),
            "S": _stripes("softmax_split_sizes", softmax_split_sizes, len(depths)),
        }
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.embed_dim = embed_dim
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.stem = ConvNorm(in_chans, embed_dim, kernel_size=7, stride=4, padding=2, **factory)
        merges = [nn.Identity(), *(Merge(embed_dim * 2**stage, **factory) for stage in range(len(depths) - 1))]
        feat_sizes = _feat_sizes(self.stem, merges, _pair(img_size))
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for stage, (types, merge, feat_size) in enumerate(zip(letters, merges, feat_sizes, strict=True)):
            last = stage == len(depths) - 1
            blocks = [
                CrossShapedBlock(
                    embed_dim * 2**stage,
                    num_heads[stage],
                    feat_size,
                    stripe=None if last else _narrower(stripes[letter][stage], feat_size),
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=drop_path,
                    linear=linear if letter == "L" else None,
                    **factory,
                )
                for letter, drop_path in zip(types, drop_paths[stage], strict=True)
            ]
            stages.append(CrossShapedStage(merge, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": embed_dim * 2**stage, "reduction": 4 * 2**stage, "module": f"stages.{stage}"}
            for stage in range(len(depths))
        ]
        self.norm: nn.Module = nn.LayerNorm(self.num_features, **factory)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt, **factory
        )
        self.head_hidden_size = self.head.num_features
        self.apply(_initialise)
        accept_official_names(self, convert)

    def embed(self, x: Tensor) -> Tensor:
        """Return ``[B, height / 4, width / 4, embed_dim]`` of images."""
        return self.stem(x)

    def normalise(self, x: Tensor) -> Tensor:
        """Return the last map normalised."""
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, ``[B, classes]``, of a map, ``[B, height, width, C]``; its pooled features for ``pre_logits``."""
        logits: Tensor = self.head(x, pre_logits=pre_logits)
        return logits

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes for none."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head.reset(num_classes, pool_type=global_pool, in_features=self.num_features)
        self.head_hidden_size = self.head.num_features

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Change the size the model is built for; key encodings are resized to it, stripes keep their width."""
        feat_sizes = _feat_sizes(self.stem, [stage.downsample for stage in self.stages], _pair(img_size))
        for stage, feat_size in zip(self.stages, feat_sizes, strict=True):
            for block in stage.blocks:
                block.set_input_size(feat_size)
        update_model_input_size(self, _pair(img_size))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns that sort parameters into layers, for layer-wise learning rates."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.\w+\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}


def _enhance(convolution: nn.Module, value: Tensor, window_size: Size) -> Tensor:
    """Convolve the values of each window, ``[B·W, N, C]``."""
    return convolve_values(convolution, value[:, None], window_size)[:, 0]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _pair(img_size: int | Sequence[int]) -> Size:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return height, width


def _feat_sizes(stem: ConvNorm, merges: Sequence[nn.Module], img_size: Size) -> list[Size]:
    """Return height and width of the map of each stage."""
    sizes = [stem.feat_size(img_size)]
    for merge in merges[1:]:
        assert isinstance(merge, Merge)
        sizes.append(merge.feat_size(sizes[-1]))
    return sizes


def _stripes(name: str, split_sizes: int | Sequence[int], count: int) -> Sequence[int | None]:
    """Return the width of the stripes of each stage."""
    return per_stage(split_sizes, count, f"{name} must be a positive width of stripes, or one for each of {count} stages")


def _narrower(stripe: int | None, feat_size: Size) -> int | None:
    """Return the width of stripes of a map, None if they are the whole map."""
    return None if stripe is None or stripe >= max(feat_size) else stripe


_OFFICIAL_NAMES = (
    (r"^stage1_conv_embed\.0\.", r"stem.conv."),
    (r"^stage1_conv_embed\.2\.", r"stem.norm."),
    (r"^merge(\d+)\.", r"stages.\1.downsample."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def convert(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under the names of ``model``; unknown keys pass through."""
    named = {}
    for name, value in state_dict.items():
        for official, ours in _OFFICIAL_NAMES:
            name = re.sub(official, ours, name)
        name = re.sub(r"^stage(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks.", name)
        named[name] = value
    for prefix, module in model.named_modules():
        if isinstance(module, CrossShapedBlock):
            _fit_branches(named, prefix, module)
    return named


def _fit_branches(named: dict[str, Tensor], prefix: str, block: CrossShapedBlock) -> None:
    """Fit, in place, the convolutions of a block with other stripes.

    Two branches of softmax stripes that each hold the whole map become one branch with all heads, whose convolution is
    theirs side by side. So do those of a softmax model that linear attention begins with, whose stripes are its own.
    """
    if isinstance(block.attns[0], GridAttention) and not _begins_with_softmax(named, f"{prefix}.attns.0", block.attns[0]):
        return
    for leaf in ("weight", "bias"):
        names = [f"{prefix}.attns.{branch}.get_v.{leaf}" for branch in range(2)]
        parts = [named.pop(name) for name in names if name in named]
        if parts:
            named.update(zip(names, torch.cat(parts).chunk(block.branches), strict=False))


def _begins_with_softmax(named: Mapping[str, Tensor], prefix: str, attn: GridAttention) -> bool:
    """Return whether none of what linear attention adds is there."""
    added = [f"{prefix}.{name}" for name, _ in attn.named_parameters() if not name.startswith("get_v.")]
    return bool(added) and not any(name in named for name in added)


_create: Callable[..., FlattenCSwinTransformer] = partial(
    build,
    FlattenCSwinTransformer,
    filter_fn=checkpoint_filter_fn,
    feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
)
_cfg = partial(default_cfg, first_conv="stem.conv", classifier="head.fc")
default_cfgs = generate_default_cfgs(
    {
        "flatten_cswin_tiny_224": _cfg("48ba765ba8b0451d9d5a"),
        "flatten_cswin_small_224": _cfg(),
        "flatten_cswin_base_224": _cfg(),
        "flatten_cswin_base_384": _cfg(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0),
    }
)


@register_model
def flatten_cswin_tiny_224(pretrained: bool = False, **kwargs: Any) -> FlattenCSwinTransformer:
    """FLatten-CSwin-T: 21.20 M parameters; 83.1 % ImageNet top-1 in the paper."""
    sizes = {"embed_dim": 64, "depths": (2, 4, 18, 1), "num_heads": (2, 4, 8, 16)}
    return _create("flatten_cswin_tiny_224", pretrained, **(sizes | kwargs))


@register_model
def flatten_cswin_small_224(pretrained: bool = False, **kwargs: Any) -> FlattenCSwinTransformer:
    """FLatten-CSwin-S: 35.45 M parameters; 83.8 % ImageNet top-1 in the paper."""
    sizes = {"embed_dim": 64, "depths": (2, 4, 32, 2), "num_heads": (2, 4, 8, 16)}
    return _create("flatten_cswin_small_224", pretrained, **(sizes | kwargs))


@register_model
def flatten_cswin_base_224(pretrained: bool = False, **kwargs: Any) -> FlattenCSwinTransformer:
    """FLatten-CSwin-B: 74.87 M parameters; 84.5 % ImageNet top-1 in the paper."""
    sizes = {"embed_dim": 96, "depths": (3, 6, 29, 2), "num_heads": (4, 8, 16, 32)}
    return _create("flatten_cswin_base_224", pretrained, **(sizes | kwargs))


@register_model
def flatten_cswin_base_384(pretrained: bool = False, **kwargs: Any) -> FlattenCSwinTransformer:
    """FLatten-CSwin-B at 384: 78.37 M parameters; 85.5 % ImageNet top-1 in the paper."""
    sizes = {"embed_dim": 96, "depths": (3, 6, 29, 2), "num_heads": (4, 8, 16, 32)}
    layout = {"img_size": 384, "softmax_split_sizes": (1, 2, 12, 12)}
    return _create("flatten_cswin_base_384", pretrained, **(sizes | layout | kwargs))
