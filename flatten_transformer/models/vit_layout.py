"""What stands before the grid of a vision transformer, and where it pools: read off its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from flatten_transformer.models.cures import LayoutError


class Layout(NamedTuple):
    """Tokens and last norm of a vision transformer."""

    class_token: bool
    reg_tokens: int
    norm: str  # "norm": of all tokens, before pooling; "fc_norm": after it


def rename_distillation_token(state_dict: Mapping[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """Return the tensors with DeiT's distillation token as a register token, which stands in its place; the others pass."""
    tensors = dict(state_dict)
    if model.reg_token is not None and "dist_token" in tensors and "reg_token" not in tensors:
        tensors["reg_token"] = tensors.pop("dist_token")
    return tensors


def check_layout(tensors: Mapping[str, Tensor], model: VisionTransformer) -> None:
    """Raise LayoutError if the tensors are of a vision transformer with other tokens or another pooling.

    Args:
        tensors: Tensors by timm's names.
        model: Target model.
    """
    if not {"pos_embed", "blocks.0.attn.qkv.weight"} <= tensors.keys():
        return
    given, own = _layout(tensors), _layout(model.state_dict())
    wanted: dict[str, Any] = {name: value for name, value in given._asdict().items() if value != getattr(own, name)}
    theirs, ours = (" and ".join(_words(layout, wanted)) for layout in (given, own))
    if wanted.pop("norm", None) or (model.global_pool == "token" and not given.class_token):
        wanted |= _pooling(given, model)
    if wanted:
        raise LayoutError(f"the weights have {theirs}, this model has {ours}", wanted)


def _layout(tensors: Mapping[str, Tensor]) -> Layout:
    registers = [tensors[name] for name in ("reg_token", "dist_token") if name in tensors]
    count = sum(tokens.shape[1] for tokens in registers if tokens.ndim == 3)
    return Layout("cls_token" in tensors, count, "fc_norm" if "fc_norm.weight" in tensors else "norm")


def _pooling(given: Layout, model: VisionTransformer) -> dict[str, Any]:
    """Return the arguments, other than this model's, that put the norm where the weights have it."""
    global_pool = "token" if given.class_token and given.norm == "norm" else "avg"
    if global_pool != model.global_pool:
        wanted: dict[str, Any] = {"global_pool": global_pool}
        return wanted if global_pool == "token" or given.norm == "fc_norm" else wanted | {"fc_norm": False}
    return {"fc_norm": given.norm == "fc_norm"}


def _words(layout: Layout, aspects: Mapping[str, Any]) -> list[str]:
    tokens = layout.reg_tokens
    words = {
        "class_token": "a class token" if layout.class_token else "no class token",
        "reg_tokens": f"{tokens or 'no'} register or distillation token{'' if tokens == 1 else 's'}",
        "norm": f"the norm {'before' if layout.norm == 'norm' else 'after'} pooling",
    }
    return [words[aspect] for aspect in aspects]
