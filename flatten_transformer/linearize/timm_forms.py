"""Linear forms of timm's attentions: ViT, DeiT, DINO, EVA and DINOv3, Swin, PVTv2; and of the softmax blocks of FLatten-DeiT."""

# B batch, N tokens, C channels, H heads, D channels per head.

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models import pvt_v2
from timm.models.cait import TalkingHeadAttn
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from flatten_transformer.layers.attention.layout import split_heads
from flatten_transformer.linearize.forms import LinearForm, linear_form_of
from flatten_transformer.models.flatten_deit import GridSoftmaxAttention
from flatten_transformer.ops.checks import check_order


class _Finish:
    """What timm's plain attentions do after they have attended."""

    norm: nn.Module
    gate: nn.Module | None
    proj: nn.Module
    proj_drop: nn.Module

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        """Normalise, gate by the tokens ``x`` and project ``[B, N, H·D]``."""
        out = self.norm(out)
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected


@linear_form_of(Attention)
class LinearAttention(_Finish, LinearForm, Attention):
    """Linear form of the attention in timm's ViT, DeiT, DINO, DINOv2, CLIP and SigLIP."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, *, grid_size: Sequence[int] | None = None
    ) -> Tensor:
        """Return ``[B, N, C]``; without ``grid_size``, the grid is that of the image."""
        check_order(is_causal)
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=2))
        return self.finish(self.mixer(self.q_norm(q), self.k_norm(k), v, attn_mask, x=x, grid_size=grid_size), x)


@linear_form_of(GridSoftmaxAttention)
class LinearGridAttention(LinearAttention, GridSoftmaxAttention):
    """Linear form of a softmax block of FLatten-DeiT, whose blocks say the grid."""

    def forward(self, x: Tensor, grid_size: Sequence[int], *, attn_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return ``[B, N, C]``."""
        return LinearAttention.forward(self, x, attn_mask, grid_size=grid_size)


class _Rotary(_Finish):
    """Attentions with rotary encodings: rotated queries and keys are what softmax has compared, so they are what is mixed."""

    num_heads: int
    num_prefix_tokens: int
    rotate_half: bool
    mixer: Any

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None, attn_mask: Tensor | None, x: Tensor) -> Tensor:
        """Return ``[B, N, C]`` of heads ``[B, H, N, D]``."""
        if rope is not None:
            q, k = self._rotate(q, rope).type_as(v), self._rotate(k, rope).type_as(v)
        if k.shape[1] < q.shape[1]:  # grouped queries
            k, v = (tokens.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tokens in (k, v))
        return self.finish(self.mixer(q, k, v, attn_mask, x=x), x)

    def _rotate(self, tokens: Tensor, rope: Tensor) -> Tensor:
        prefix, grid = tokens.split([self.num_prefix_tokens, tokens.shape[2] - self.num_prefix_tokens], dim=2)
        return torch.cat([prefix, apply_rot_embed_cat(grid, rope, half=self.rotate_half)], dim=2)


@linear_form_of(AttentionRope)
class LinearAttentionRope(_Rotary, LinearForm, AttentionRope):
    """Linear form of timm's attention with rotary encodings."""

    def forward(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return ``[B, N, C]``."""
        check_order(is_causal)
        parts = self.qkv(x).chunk(3, dim=2) if self.qkv is not None else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        return self.attend(self.q_norm(q), self.k_norm(k), v, rope, attn_mask, x)


@linear_form_of(EvaAttention)
class LinearEvaAttention(_Rotary, LinearForm, EvaAttention):
    """Linear form of the attention in timm's EVA, EVA-02, DINOv3 and Perception Encoder."""

    def forward(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return ``[B, N, C]``."""
        check_order(is_causal)
        q, k, v = (split_heads(part, self.num_heads) for part in self._project(x))
        return self.attend(self.q_norm(q), self.k_norm(k), v, rope, attn_mask, x)

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        if self.qkv is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        bias = None if self.q_bias is None else torch.cat([self.q_bias, self.k_bias, self.v_bias])  # keys have none: zeros
        return F.linear(x, self.qkv.weight, bias).chunk(3, dim=2)


@linear_form_of(WindowAttention)
class LinearWindowAttention(LinearForm, WindowAttention):
    """Linear form of the attention in timm's Swin."""

    without = ("relative_position_bias_table", "relative_position_index", "softmax")
    loses = "its relative position bias, which weighs single query-key pairs"

    @classmethod
    def heads(cls, host: Any) -> tuple[int, int]:
        """Return heads and channels."""
        return host.num_heads, host.qkv.out_features // 3 // host.num_heads

    @classmethod
    def grid_size(cls, host: Any) -> tuple[int, ...]:
        """Return the window."""
        height, width = host.window_size
        return height, width

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Attend in other windows; there is no bias to resize."""
        self.window_size = window_size
        self.window_area = window_size[0] * window_size[1]

    def forward(self, x: Tensor, mask: Tensor | None = None, grid_size: Sequence[int] | None = None) -> Tensor:
        """Return ``[windows · B, N, C]``; a mask of query-key pairs is not applied."""
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=2))
        out = self.mixer(q, k, v, x=x, grid_size=self.window_size if grid_size is None else grid_size)
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected


class WholeMapBlock(SwinTransformerBlock):
    """Swin's block without windows: inside one of 49 tokens linear attention saves nothing."""

    def _attn(self, x: Tensor) -> Tensor:
        grid_size = (x.shape[1], x.shape[2])
        attended: Tensor = self.attn(x.flatten(1, 2), grid_size=grid_size)
        return attended.unflatten(1, grid_size)


def widen_windows(model: nn.Module, names: Collection[str]) -> None:
    """Let the window of each Swin attention among ``names`` be the whole map."""
    for name, block in model.named_modules():
        if type(block) is SwinTransformerBlock and f"{name}.attn" in names:
            block.__class__ = WholeMapBlock
            block.attn.window_size = tuple(block.input_resolution)


def are_shifted(model: nn.Module, names: Collection[str]) -> bool:
    """Return whether one of these attentions is in a Swin block that shifts its windows."""
    blocks = (model.get_submodule(name.rpartition(".")[0]) for name in names)
    return any(isinstance(block, SwinTransformerBlock) and any(block.shift_size) for block in blocks)


@linear_form_of(pvt_v2.Attention)
class LinearReducedAttention(LinearForm, pvt_v2.Attention):
    """Linear form of the attention in timm's PVTv2: keys and values from the map as the host reduces it."""

    on_one_grid = False

    def forward(self, x: Tensor, feat_size: Sequence[int]) -> Tensor:
        """Return ``[B, N, C]``."""
        context, context_size = self._reduce(x, feat_size)
        q = split_heads(self.q(x), self.num_heads)
        k, v = (split_heads(part, self.num_heads) for part in self.kv(context).chunk(2, dim=2))
        out = self.mixer(q, k, v, x=x, grid_size=tuple(feat_size), context_grid_size=context_size)
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected

    @classmethod
    def grid_size(cls, host: Any) -> tuple[int, ...]:
        """Return the reduced map of every stage at 224."""
        return (7, 7)

    def _reduce(self, x: Tensor, feat_size: Sequence[int]) -> tuple[Tensor, tuple[int, ...] | None]:
        """Return the tokens that keys and values are made of, and their grid; None: that of the queries."""
        if self.sr is None:
            return x, None
        maps = x.transpose(1, 2).unflatten(2, tuple(feat_size))
        maps = self.sr(maps if self.pool is None else self.pool(maps))
        tokens = self.norm(maps.flatten(2).transpose(1, 2))
        return tokens if self.act is None else self.act(tokens), tuple(maps.shape[2:])


@linear_form_of(TalkingHeadAttn)
class LinearTalkingHeads(LinearForm, TalkingHeadAttn):
    """No form: CaiT's heads exchange their attention matrices, which linear attention never has."""

    @classmethod
    def check(cls, host: Any) -> None:
        """Refuse."""
        raise ValueError("its heads mix their attention matrices (talking heads), which linear attention never forms")
