"""An attention of this library as the ``attn_layer`` of timm's VisionTransformer."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.layout import check_grid
from flatten_transformer.layers.attention.registry import check_options, create_attention

_SET_BY_HOST = {
    *("context_dim", "device", "dim", "dtype", "num_heads", "proj_bias", "proj_drop", "projections", "qkv_bias"),
}


class AttentionLayer(type):
    """Type of the classes that :func:`attention_layer` returns: called by timm's block, they make an attention of this library.

    timm wants a class, since it asks for its bases. What is made is an instance of the design's own class, which pickles.
    """

    design: str
    grid_size: tuple[int, ...]
    options: Mapping[str, Any]

    def __call__(
        cls,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> GridAttention:
        """Return the attention; the arguments are those of timm's ``Attention``. ``norm_layer`` is that of ``qk_norm``."""
        refused = {"qk_norm": qk_norm, "scale_norm (scale_attn_norm)": scale_norm, "attn_drop (attn_drop_rate)": attn_drop}
        for name, value in refused.items():
            if value:
                raise ValueError(f"{name} has no meaning for linear attention over a grid: leave it out, got {value!r}")
        return create_attention(
            cls.design,
            dim,
            num_heads,
            cls.grid_size,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
            **cls.options,
        )


def attention_layer(name: str, grid_size: Sequence[int], **options: Any) -> AttentionLayer:
    """Return an attention as a class for ``attn_layer`` of timm's ``VisionTransformer`` and ``Block``.

    Args:
        name: One of :func:`flatten_transformer.layers.list_attentions`.
        grid_size: The grid of the patches, such as (14, 14) for 224 pixels in patches of 16.
        options: Its options, but those that timm sets (``qkv_bias``, ``proj_bias``, ``proj_drop``, ``device``, ``dtype``).
            ``num_prefix_tokens`` counts class and register tokens: 1 in most of timm's models.

    Returns:
        A class; what it makes are attentions like :func:`flatten_transformer.layers.create_attention`'s.

    Raises:
        ValueError: If there is no such attention or option, or timm sets it. When a model is built: for ``qk_norm``,
            ``scale_attn_norm`` and ``attn_drop_rate``, which have no meaning here.

    Example:
        >>> import timm
        >>> linear = attention_layer("focused", grid_size=(14, 14), num_prefix_tokens=1)
        >>> model = timm.create_model("vit_tiny_patch16_224", attn_layer=linear, depth=2)
        >>> model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    for option in sorted(_SET_BY_HOST & options.keys()):
        raise ValueError(f"{option} is set by the model that takes the attn_layer: leave it out here, got {options[option]!r}")
    check_options(name, options)
    return AttentionLayer(name, (), {"design": name, "grid_size": check_grid(grid_size), "options": options})


def _rebuild(name: str, grid_size: Sequence[int], options: Mapping[str, Any]) -> AttentionLayer:
    return attention_layer(name, grid_size, **options)


def _reduce(layer: AttentionLayer) -> tuple[Any, ...]:
    return _rebuild, (layer.design, layer.grid_size, layer.options)


copyreg.pickle(AttentionLayer, _reduce)  # pickle looks here before it looks for a class by its name
