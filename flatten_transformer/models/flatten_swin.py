"""FLatten-Swin: timm's SwinTransformer with focused linear attention over large windows in its first stages.

The linear blocks of FLatten Transformer (arXiv 2308.00442) attend in windows of 56, which is the whole map at 224;
the softmax blocks keep Swin's windows of 7, its shift and its relative position bias.
"""

# B batch, W windows of a map, N tokens of a window, C channels.

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models import generate_default_cfgs, register_model
from timm.models._input import update_model_args
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    calc_stage_window_sizes,
    get_relative_position_index,
)
from torch import Tensor, nn

from flatten_transformer.layers import GridAttention
from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.layers.learned_grids import Grid, LearnsOnGrid
from flatten_transformer.layers.windows import Windows
from flatten_transformer.models.attention_choice import choose_attention, lists_attention_options, pop_attention_options
from flatten_transformer.models.build import build, default_cfg
from flatten_transformer.models.fit_weights import accept_official_names, checkpoint_filter_fn
from flatten_transformer.models.options import check_attn_drop, expand_attn_types

__all__ = ["FlattenSwinTransformer"]

Size = tuple[int, int]
WindowSize = int | Sequence[int] | Sequence[Size]


class WindowBlock(nn.Module):
    """A Swin block made of timm's parts, on maps of any size; subclasses attend within windows.

    Args:
        host: timm's block; its norms, MLP and drop paths are reused.
        attn: Attention within a window.
        feat_size: The map the block is built for.
        shifted: Roll the map by half a window before it is split, along each axis with more than one window.
    """

    def __init__(self, host: SwinTransformerBlock, attn: nn.Module, feat_size: Size, shifted: bool) -> None:
        super().__init__()
        self.feat_size = feat_size
        self.shifted = shifted
        self.norm1 = host.norm1
        self.attn = attn
        self.drop_path1 = host.drop_path1
        self.norm2 = host.norm2
        self.mlp = host.mlp
        self.drop_path2 = host.drop_path2

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, height, width, C]``."""
        windows = self.windows((x.shape[1], x.shape[2]))
        x = x + self.drop_path1(windows.join(self.attend(windows.split(self.norm1(x)), windows)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def windows(self, feat_size: Size) -> Windows:
        """Return the windows of a map of this size."""
        window_size = self.window_size_on(feat_size)
        if not self.shifted:
            return Windows(feat_size, window_size)
        height, width = (window // 2 if size > window else 0 for size, window in zip(feat_size, window_size, strict=True))
        return Windows(feat_size, window_size, (height, width))

    def window_size_on(self, feat_size: Size) -> Size:
        """Return the window used on a map of this size."""
        raise NotImplementedError

    def attend(self, tokens: Tensor, windows: Windows) -> Tensor:
        """Attend within each window, ``[B·W, N, C]``."""
        raise NotImplementedError


class LinearWindowBlock(WindowBlock):
    """Linear attention, by default the focused one, in windows capped by the map.

    A shifted map is attended to as it is rolled, without Swin's mask over pairs, which linear attention cannot apply:
    tokens from opposite ends of the map meet, as in the released code. No map is larger than its window at the
    published sizes, where nothing is shifted.

    Args:
        host: timm's block.
        feat_size: The map the block is built for.
        window_size: The largest window.
        shifted: Roll the map, see :class:`WindowBlock`.
        linear: Factory of its attention.
    """

    attn: GridAttention

    def __init__(
        self, host: SwinTransformerBlock, feat_size: Size, window_size: Size, shifted: bool, linear: partial[GridAttention]
    ) -> None:
        softmax = host.attn
        attn = linear(
            softmax.dim,
            softmax.num_heads,
            _cap(window_size, feat_size),
            qkv_bias=softmax.qkv.bias is not None,
            proj_drop=softmax.proj_drop.p,
            device=softmax.qkv.weight.device,
            dtype=softmax.qkv.weight.dtype,
        )
        super().__init__(host, attn, feat_size, shifted)
        self.window_size = window_size

    def window_size_on(self, feat_size: Size) -> Size:
        """Return the window, capped by the map."""
        return _cap(self.window_size, feat_size)

    def attend(self, tokens: Tensor, windows: Windows) -> Tensor:
        """Attend within each window, ``[B·W, N, C]``; padding is no key and zero to the convolution."""
        out: Tensor = self.attn(tokens, windows.window_size, attn_mask=windows.key_mask(tokens))
        return out

    def set_input_size(self, feat_size: Size, window_size: Size, always_partition: None = None) -> None:
        """Note another map, as timm's stage tells it; the window it tells is that of softmax blocks."""
        self.feat_size = feat_size

    def set_window_size(self, window_size: Size) -> None:
        """Build the block for another window of the map it knows; the key encoding is resized."""
        self.window_size = window_size
        self.attn.set_grid_size(_cap(window_size, self.feat_size))


class SoftmaxWindowBlock(LearnsOnGrid, WindowBlock):
    """timm's softmax attention in windows that may overhang the map: padding is masked out.

    The window is the one of the relative position bias, however small the map: a masked window gives what a smaller
    one would with the bias of its own offsets.

    Args:
        host: timm's block.
        feat_size: The map the block is built for.
        shifted: Roll the map, see :class:`WindowBlock`.
    """

    attn: WindowAttention
    attn_mask: Tensor | None

    def __init__(self, host: SwinTransformerBlock, feat_size: Size, shifted: bool) -> None:
        super().__init__(host, host.attn, feat_size, shifted)
        self.register_buffer("attn_mask", None, persistent=False)
        self.init_non_persistent_buffers()

    def window_size_on(self, feat_size: Size) -> Size:
        """Return the window of the relative position bias."""
        window_size: Size = self.attn.window_size
        return window_size

    def attend(self, tokens: Tensor, windows: Windows) -> Tensor:
        """Attend within each window, ``[B·W, N, C]``."""
        # the mask of the built size is kept, as in timm: computing it takes a dozen small kernels a block
        mask = self.attn_mask if windows.grid_size == self.feat_size else _additive_mask(windows, tokens)
        out: Tensor = self.attn(tokens, mask)
        return out

    def set_input_size(self, feat_size: Size, window_size: Size, always_partition: None = None) -> None:
        """Build the block for another map and window; the relative position bias is resized."""
        self.feat_size = feat_size
        _set_window_size(self.attn, _cap(window_size, feat_size))
        self.init_non_persistent_buffers()

    def learned_grids(self) -> Mapping[str, Grid]:
        """Return the grid of offsets that the relative position bias lies on."""
        return {"attn.relative_position_bias_table": _offsets(self.attn.window_size)}

    def reset_parameters(self) -> None:
        """Fill the mask, as timm's ``init_weights`` expects: the block itself has no parameters."""
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill the mask, which no checkpoint holds; timm calls this after moving a model off the meta device."""
        self.attn_mask = _additive_mask(self.windows(self.feat_size), self.norm1.weight)


class FlattenSwinTransformer(SwinTransformer):
    """A SwinTransformer whose blocks attend by focused linear or by softmax attention, at any image size.

    Args:
        attn_types: ``"L"`` linear (see ``attention``) or ``"S"`` softmax attention; one letter for all blocks, one a stage, or
            one a block, where hyphens may set the stages apart: ``"L-LS-SSSLLL-S"``.
        window_size: Window of the linear blocks, capped by the map: a side, (height, width), or one such a stage.
            56 is the whole map of every stage at 224.
        softmax_window_size: Window of the softmax blocks, in the same forms. By default 7, or 12 where ``window_size`` is
            above 56, which is the released rule (96 with 12 for images of 384).
        kwargs: The keywords of :class:`flatten_transformer.models.AttentionOptions`, and every other one of timm's
            SwinTransformer; those without meaning here raise.

    Raises:
        ValueError: If an option is out of range or has no meaning in these blocks.

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_swin_tiny_patch4_224", num_classes=10).eval()
        >>> model(torch.randn(1, 3, 96, 128)).shape
        torch.Size([1, 10])
    """

    @lists_attention_options
    def __init__(
        self,
        *,
        attn_types: str = "LLSS",
        window_size: WindowSize = 56,
        softmax_window_size: WindowSize | None = None,
        depths: Sequence[int] = (2, 2, 6, 2),
        **kwargs: Any,
    ) -> None:
        letters = expand_attn_types(attn_types, depths)
        _check_options(attn_types, kwargs)
        choice = choose_attention(type(self), pop_attention_options(kwargs))
        linear = _per_stage("window_size", window_size, len(depths))
        if softmax_window_size is None:
            softmax_window_size = 7 if max(map(max, linear)) <= 56 else 12
        softmax = _per_stage("softmax_window_size", softmax_window_size, len(depths))
        super().__init__(
            depths=depths,
            window_size=softmax,
            strict_img_size=False,
            embed_layer=partial(PatchEmbed, dynamic_img_pad=True),
            **kwargs,
        )
        self._linear_window_sizes = linear  # timm keeps those of softmax; set_input_size scales both with the image
        for types, stage, window in zip(letters, self.layers, linear, strict=True):
            blocks: list[WindowBlock] = []
            for index, (letter, host) in enumerate(zip(types, stage.blocks, strict=True)):
                feat_size, shifted = stage.output_resolution, index % 2 == 1
                if letter == "S":
                    blocks.append(SoftmaxWindowBlock(host, feat_size, shifted))
                    continue
                blocks.append(LinearWindowBlock(host, feat_size, window, shifted, choice))
            stage.blocks = nn.Sequential(*blocks)
        accept_official_names(self, convert)

    def set_input_size(
        self,
        img_size: tuple[int, int] | None = None,
        patch_size: tuple[int, int] | None = None,
        window_size: WindowSize | None = None,
        softmax_window_size: WindowSize | None = None,
    ) -> None:
        """Change the size the model is built for; key encodings and relative position biases are resized.

        Windows that are not given grow with the map: from 224 to 384 that is 56 to 96 and 7 to 12, as in the paper.
        Give both to set them; one alone leaves the other as it is.

        Args:
            img_size: Height and width of the images; by default they stay.
            patch_size: Height and width of a patch; by default they stay.
            window_size: Window of the linear blocks, as at construction.
            softmax_window_size: Window of the softmax blocks, as at construction.
        """
        linear = softmax = None
        if window_size is not None or softmax_window_size is not None:
            linear = self._windows("window_size", window_size, self._linear_window_sizes)
            softmax = self._windows("softmax_window_size", softmax_window_size, self._ref_window_sizes)
        super().set_input_size(img_size=img_size, patch_size=patch_size, window_size=softmax)
        if linear is not None:
            self._linear_window_sizes = linear
        grown = self._grown(self._linear_window_sizes)
        for stage, window in zip(self.layers, grown, strict=False):  # feature extractors cut stages off
            for block in stage.blocks:
                if isinstance(block, LinearWindowBlock):
                    block.set_window_size(window)
        # for rebuilding this model; timm has recorded the softmax windows as window_size
        update_model_args(self, window_size=grown, softmax_window_size=self._model_args["window_size"])

    def _windows(self, name: str, given: WindowSize | None, reference: tuple[Size, ...]) -> tuple[Size, ...]:
        """Return the windows that are given, or those of now, one a stage."""
        return self._grown(reference) if given is None else _per_stage(name, given, len(self.layers))

    def _grown(self, reference: tuple[Size, ...]) -> tuple[Size, ...]:
        """Return windows for the grid of now, from those for timm's reference grid."""
        windows: tuple[Size, ...] = calc_stage_window_sizes(self.patch_embed.grid_size, reference, self._ref_grid_size)
        return windows


def _check_options(attn_types: str, options: Mapping[str, Any]) -> None:
    for option, only in (("strict_img_size", False), ("dynamic_img_size", True), ("always_partition", False)):
        if options.get(option, only) != only:
            raise ValueError(f"{option} can only be {only} here: any image size works, at no cost at the built one; leave it out")
    if "L" in attn_types and options.get("head_dim") is not None:
        raise ValueError(f"head_dim has no meaning for linear blocks (attn_types={attn_types!r}): choose num_heads instead")
    check_attn_drop(options.get("attn_drop_rate", 0.0), attn_types)


def _per_stage(name: str, size: WindowSize, count: int) -> tuple[Size, ...]:
    """Return (height, width) for each stage: from one side, one (height, width), or one of either a stage."""
    single = isinstance(size, int) or (len(size) == 2 and all(isinstance(side, int) for side in size))
    stages: Sequence[Any] = [size] * count if single else list(size)  # type: ignore[arg-type]  # not an int
    sizes = tuple((side, side) if isinstance(side, int) else tuple(side) for side in stages)
    if len(sizes) != count or any(len(pair) != 2 or min(pair) < 1 for pair in sizes):
        raise ValueError(
            f"{name} must be a side, (height, width), or one such for each of {count} stages, all positive; got {size!r}"
        )
    return sizes


def _cap(window_size: Size, feat_size: Size) -> Size:
    return min(window_size[0], feat_size[0]), min(window_size[1], feat_size[1])


def _additive_mask(windows: Windows, like: Tensor) -> Tensor | None:
    """Return 0 where a pair may attend and -inf elsewhere, ``[W, N, N]`` in the dtype of ``like``."""
    allowed = windows.pair_mask(like.device)
    if allowed is None:
        return None
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill(~allowed, float("-inf"))


def _offsets(window_size: Size) -> Size:
    """Return the number of offsets between two tokens of a window along each axis."""
    return 2 * window_size[0] - 1, 2 * window_size[1] - 1


def _set_window_size(attn: WindowAttention, window_size: Size) -> None:
    """Give timm's attention another window; its relative position bias is resized bicubically.

    timm's own set_window_size interpolates linearly, in float32, and with an indexing that PyTorch has deprecated.
    """
    table = attn.relative_position_bias_table
    resized = resize_grid(table.detach()[None], _offsets(attn.window_size), _offsets(window_size))[0]
    attn.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)
    attn.window_size, attn.window_area = window_size, window_size[0] * window_size[1]
    index = get_relative_position_index(*window_size, device=table.device)
    attn.register_buffer("relative_position_index", index, persistent=False)


def convert(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under timm's names; unknown keys pass through.

    Swin's authors have a stage's downsampling at its end, timm at the start of the next stage.
    """
    official = any(name.startswith("layers.0.downsample.") for name in state_dict)
    named = {}
    for name, value in state_dict.items():
        if name.endswith((".relative_position_index", ".attn_mask")):
            continue  # computed, not learned
        if official:
            name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", name)
        named[re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)] = value
    return named


_create: Callable[..., FlattenSwinTransformer] = partial(
    build,
    FlattenSwinTransformer,
    filter_fn=checkpoint_filter_fn,
    feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
)
_cfg = partial(default_cfg, first_conv="patch_embed.proj", classifier="head.fc")
default_cfgs = generate_default_cfgs(
    {
        "flatten_swin_tiny_patch4_224": _cfg("e1518e76703e4e57a7f2"),
        "flatten_swin_small_patch4_224": _cfg("94188e52af354bf4a88b"),
        "flatten_swin_base_patch4_224": _cfg("7a9e5186bad04e7fb3a9"),
        "flatten_swin_base_patch4_384": _cfg("0d0330cf2e5249f1abb6", input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0),
    }
)


@register_model
def flatten_swin_tiny_patch4_224(pretrained: bool = False, **kwargs: Any) -> FlattenSwinTransformer:
    """FLatten-Swin-T: 29.19 M parameters, 4.5 GMACs at 224; 82.1 % ImageNet top-1 in the paper."""
    sizes = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    return _create("flatten_swin_tiny_patch4_224", pretrained, **(sizes | kwargs))


@register_model
def flatten_swin_small_patch4_224(pretrained: bool = False, **kwargs: Any) -> FlattenSwinTransformer:
    """FLatten-Swin-S: 50.51 M parameters, 8.7 GMACs at 224; 83.5 % ImageNet top-1 in the paper."""
    sizes = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
    return _create("flatten_swin_small_patch4_224", pretrained, **(sizes | kwargs))


@register_model
def flatten_swin_base_patch4_224(pretrained: bool = False, **kwargs: Any) -> FlattenSwinTransformer:
    """FLatten-Swin-B: 89 M parameters, 15.4 GMACs at 224; 83.8 % ImageNet top-1 in the paper."""
    sizes = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return _create("flatten_swin_base_patch4_224", pretrained, **(sizes | kwargs))


@register_model
def flatten_swin_base_patch4_384(pretrained: bool = False, **kwargs: Any) -> FlattenSwinTransformer:
    """FLatten-Swin-B at 384: 91.43 M parameters, 46.5 GMACs; 85.0 % ImageNet top-1 in the paper."""
    sizes = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    layout = {"img_size": 384, "window_size": 96, "softmax_window_size": 12}
    return _create("flatten_swin_base_patch4_384", pretrained, **(sizes | layout | kwargs))
