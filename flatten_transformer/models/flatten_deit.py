"""FLatten-DeiT: timm's VisionTransformer with focused linear attention in its blocks.

FLatten Transformer (arXiv 2308.00442) reports DeiT-T; its code for it was never published. This is the
model of the paper's parameter count: no class token, mean pooling, a 14 × 14 key encoding, 5 × 5 kernels.
"""

# B batch, N tokens, C channels.

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models import generate_default_cfgs, register_model, vision_transformer
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flatten_transformer.layers import GridAttention
from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.layers.learned_grids import Grid, LearnsOnGrid
from flatten_transformer.models.attention_choice import choose_attention, lists_attention_options, pop_attention_options
from flatten_transformer.models.build import build, default_cfg
from flatten_transformer.models.fit_weights import accept_official_names, complete, fit_checkpoint, unwrap, with_grids_of
from flatten_transformer.models.options import check_attn_drop, expand_attn_types
from flatten_transformer.models.vit_layout import check_layout, rename_distillation_token
from flatten_transformer.ops.checks import check_order

__all__ = ["FlattenVisionTransformer"]


class Tokens(NamedTuple):
    """Grid and mask of a block's tokens; takes the place of timm's ``attn_mask``."""

    grid_size: tuple[int, int]
    attn_mask: Tensor | None


class GridBlock(Block):
    """timm's block, given the grid of its tokens; recomputes itself where checkpointing is on."""

    grad_checkpointing = False

    def forward(self, x: Tensor, attn_mask: Tokens, is_causal: bool = False) -> Tensor:
        """Return ``[B, N, C]``."""
        check_order(is_causal)
        if self.grad_checkpointing:
            # timm checkpoints only blocks without a mask; here the grid is always passed
            out: Tensor = checkpoint(self._forward, x, attn_mask, use_reentrant=False)
            return out
        return self._forward(x, attn_mask)

    def _forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        attended = self.attn(self.norm1(x), tokens.grid_size, attn_mask=tokens.attn_mask)
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class GridSoftmaxAttention(Attention):
    """timm's softmax attention, which needs the mask alone."""

    def forward(self, x: Tensor, grid_size: Sequence[int], *, attn_mask: Tensor | None = None) -> Tensor:
        """Return ``[B, N, C]``."""
        return super().forward(x, attn_mask)


class FlattenVisionTransformer(LearnsOnGrid, VisionTransformer):
    """A VisionTransformer whose blocks attend by focused linear attention, at any image size.

    Args:
        attn_types: ``"L"`` linear (see ``attention``) or ``"S"`` softmax attention; one letter for all blocks or one a block.
        attn_drop_rate: Dropout probability of the weights of softmax attention.
        class_token: As in timm; class and register tokens attend, and bypass the convolution.
        global_pool: As in timm.
        dynamic_img_pad: As in timm; on, so that sizes need not be multiples of the patch.
        weight_init: As in timm; applies to the linear attention too.
        fix_init: As in timm: later blocks start smaller.
        kwargs: The keywords of :class:`flatten_transformer.models.AttentionOptions`, and every other one of timm's
            VisionTransformer; those without meaning here raise.

    Raises:
        ValueError: If an option does not exist for linear attention (patch_drop_rate, qk_norm), or attn_drop_rate
            is given where no block has weights to drop..

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_deit_tiny_patch16_224", num_classes=10).eval()
        >>> model(torch.randn(1, 3, 160, 224)).shape
        torch.Size([1, 10])
    """

    @lists_attention_options
    def __init__(
        self,
        *,
        attn_types: str = "L",
        attn_drop_rate: float = 0.0,
        class_token: bool = False,
        global_pool: str = "avg",
        dynamic_img_pad: bool = True,
        weight_init: str = "",
        fix_init: bool = False,
        **kwargs: Any,
    ) -> None:
        attention = pop_attention_options(kwargs)
        if not kwargs.pop("dynamic_img_size", True):
            raise ValueError("dynamic_img_size cannot be switched off: any image size works, at no cost at the built one")
        for option in ("patch_drop_rate", "qk_norm", "scale_attn_norm"):
            if kwargs.get(option):
                raise ValueError(
                    f"{option} has no meaning for linear attention over a grid: leave it out, got {kwargs[option]!r}"
                )
        drawn_here = weight_init != "skip" and bool(weight_init or fix_init)  # once the linear layers exist
        super().__init__(
            weight_init="skip" if drawn_here else weight_init,
            fix_init=fix_init,
            class_token=class_token,
            attn_drop_rate=attn_drop_rate,
            global_pool=global_pool,
            dynamic_img_size=True,
            dynamic_img_pad=dynamic_img_pad,
            block_fn=GridBlock,
            attn_layer=GridSoftmaxAttention,
            **kwargs,
        )
        (letters,) = expand_attn_types(attn_types, [len(self.blocks)])
        check_attn_drop(attn_drop_rate, attn_types)
        linear = choose_attention(type(self), attention)
        for letter, block in zip(letters, self.blocks, strict=True):
            if letter == "L":
                block.attn = self._linear_attention(block.attn, linear)
        if drawn_here:
            self.weight_init_mode = weight_init
            self.init_weights(needs_reset=False)
        accept_official_names(self, rename_distillation_token)

    def _linear_attention(self, softmax: Attention, linear: partial[GridAttention]) -> GridAttention:
        weight = softmax.qkv.weight
        return linear(
            self.embed_dim,
            softmax.num_heads,
            self.patch_embed.grid_size,
            qkv_bias=softmax.qkv.bias is not None,
            proj_bias=softmax.proj.bias is not None,
            proj_drop=softmax.proj_drop.p,
            num_prefix_tokens=self.num_prefix_tokens,
            device=weight.device,
            dtype=weight.dtype,
        )

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the normalised tokens, ``[B, N, C]``, of images ``[B, 3, height, width]``."""
        features: Tensor = super().forward_features(x, attn_mask=self._tokens(x, attn_mask), is_causal=is_causal)
        return features

    def forward_intermediates(self, x: Tensor, *args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Return features of chosen blocks: the arguments and results of timm's VisionTransformer."""
        return super().forward_intermediates(x, *args, attn_mask=self._tokens(x, attn_mask), **kwargs)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add the position encoding, resized to the grid of ``x``, ``[B, height, width, C]``; prepend prefix tokens."""
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        if self.pos_embed is None:
            return torch.cat([*prefix, x.flatten(1, 2)], dim=1)
        encoding = self._resize_pos_embed(self.pos_embed, self.patch_embed.grid_size, x.shape[1:3])
        if self.no_embed_class:
            return self.pos_drop(torch.cat([*prefix, x.flatten(1, 2) + encoding], dim=1))
        return self.pos_drop(torch.cat([*prefix, x.flatten(1, 2)], dim=1) + encoding)

    def _resize_pos_embed(self, encoding: Tensor, old_size: Sequence[int], new_size: Sequence[int]) -> Tensor:
        """Resize a position encoding as key encodings are.

        timm resizes with antialiasing, which neither compiles with dynamic sizes nor exports to ONNX.
        """
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        return torch.cat([encoding[:, :prefix], resize_grid(encoding[:, prefix:], old_size, new_size)], dim=1)

    def _tokens(self, image: Tensor, attn_mask: Tensor | None) -> Tokens:
        return Tokens(self.patch_embed.dynamic_feat_size((image.shape[2], image.shape[3])), attn_mask)

    def learned_grids(self) -> Mapping[str, Grid]:
        """Return the grid of the position encoding, if there is one."""
        return {} if self.pos_embed is None else {"pos_embed": self.patch_embed.grid_size}

    def fit_learned(
        self, tensors: MutableMapping[str, Tensor], prefix: str, known: Any = None, *, resuming: bool = False
    ) -> None:
        """Resize the position encoding; where that fails because other tokens stand before the grid, say so."""
        try:
            super().fit_learned(tensors, prefix, known, resuming=resuming)
        except ValueError:
            check_layout({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}, self)
            raise

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for block in self.blocks:
            block.grad_checkpointing = enable

    def set_input_size(self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None) -> None:
        """Change the size the model is built for; position and key encodings are resized to it."""
        encoding, old_size = self.pos_embed, self.patch_embed.grid_size
        self.pos_embed: nn.Parameter | None = None  # keeps timm from resizing it
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        if encoding is not None:
            resized = self._resize_pos_embed(encoding.detach(), old_size, self.patch_embed.grid_size)
            self.pos_embed = nn.Parameter(resized, requires_grad=encoding.requires_grad)
        for block in self.blocks:
            if isinstance(block.attn, GridAttention):
                block.attn.set_grid_size(self.patch_embed.grid_size)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: FlattenVisionTransformer) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint as ``model`` takes them: patch, position and key encodings resized.

    Raises:
        ValueError: If it is a checkpoint of another model.
    """
    check_layout(unwrap(state_dict), model)
    fitted = fit_checkpoint(state_dict, model)
    tensors = with_grids_of(model, vision_transformer.checkpoint_filter_fn(fitted, model))
    return complete(tensors, model, stem="patch_embed.proj")


_create: Callable[..., FlattenVisionTransformer] = partial(
    build, FlattenVisionTransformer, filter_fn=checkpoint_filter_fn, feature_cfg={"out_indices": 3, "feature_cls": "getter"}
)
_cfg = partial(default_cfg, first_conv="patch_embed.proj", classifier="head", pool_size=None)
default_cfgs = generate_default_cfgs(
    {
        "flatten_deit_tiny_patch16_224": _cfg(),
        "flatten_deit_small_patch16_224": _cfg(),
        "flatten_deit_base_patch16_224": _cfg(),
    }
)


@register_model
def flatten_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> FlattenVisionTransformer:
    """FLatten-DeiT-T: 6.19 M parameters, 1.14 GMACs at 224; 74.1 % ImageNet top-1 in the paper."""
    sizes = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    return _create("flatten_deit_tiny_patch16_224", pretrained, **(sizes | kwargs))


@register_model
def flatten_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> FlattenVisionTransformer:
    """FLatten-DeiT-S."""
    sizes = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    return _create("flatten_deit_small_patch16_224", pretrained, **(sizes | kwargs))


@register_model
def flatten_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> FlattenVisionTransformer:
    """FLatten-DeiT-B."""
    sizes = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    return _create("flatten_deit_base_patch16_224", pretrained, **(sizes | kwargs))
