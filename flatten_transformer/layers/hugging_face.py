"""Attentions of this library in models of Hugging Face transformers, under the names of attention implementations."""

# B batch, H heads, N queries, M keys, D channels per head, C = H × D channels.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import create_attention
from flatten_transformer.layers.masks import kept_keys
from flatten_transformer.ops.checks import shape_of

DESIGNS = ("focused", "relu", "elu", "hydra", "efficient", "angular", "inline")
MIXER = "flatten_mixer"

_NOTHING_LEARNED = {"projections": False, "key_encoding": False, "temperature": False, "rank_restoration": False}
_KEEP_SOFTMAX = (
    'keep "sdpa" in this part of the model, such as by model.set_attn_implementation({"vision_config": "focused_linear"}) '
    "for the images of CLIP"
)

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
MaskFunction = Callable[..., Tensor | None]


def register_attentions() -> list[str]:
    """Register the designs of :data:`DESIGNS` as ``"<design>_linear"``, and ``"flatten_mixer"``, with transformers.

    ``model.set_attn_implementation("focused_linear")`` then turns a model's attentions, ViT's, DINOv2's, DINOv3's, CLIP's or
    SigLIP's, into linear ones, over the queries, keys and values that the model projects. What a design learns itself
    (convolution, key encoding, temperature) has no place in a function and is left out: ``focused`` is
    ``φ(Q)(φ(K)ᵀV)``, normalised.

    ``"flatten_mixer"`` calls a module ``mixer`` where an attention of the model has one, as
    ``attention.mixer(query, key, value, attention_mask)`` with ``[B, H, N, D]``, ``[B, H, M, D]`` twice and a boolean
    ``[B, 1, 1, M]``, or None, for ``[B, N, C]``; where it has none, transformers' ``"sdpa"``.

    Returns:
        The names.

    Raises:
        ValueError: If transformers is not installed, or too old. While a model runs: for causal attention, masks of single
            query-key pairs, dropout of attention weights, and terms that are added to them.
    """
    for design in DESIGNS:
        register_attention_as(f"{design}_linear", design)
    _register(MIXER, _mixer_or_softmax(_transformers("AttentionInterface")()["sdpa"]), _mixer_mask)
    return [*(f"{design}_linear" for design in DESIGNS), MIXER]


def register_attention_as(implementation: str, attention: str, **options: Any) -> None:
    """Register one attention with transformers under a name of yours, with options.

    Args:
        implementation: The name that ``model.set_attn_implementation`` takes.
        attention: One of :func:`flatten_transformer.layers.list_attentions`, yours too. It sees the tokens as a line, class
            token included.
        options: Its options, such as ``focusing_factor``.

    Raises:
        ValueError: As :func:`register_attentions`, and if the attention learns parameters.
    """
    _register(implementation, attention_function(attention, **options), key_mask)


def attention_function(attention: str, **options: Any) -> AttentionFunction:
    """Return an attention as the function that transformers calls: ``(module, query, key, value, attention_mask, …)``.

    Args:
        attention: As in :func:`register_attention_as`.
        options: As in :func:`register_attention_as`.

    Returns:
        A function of ``[B, H, N, D]`` and twice ``[B, H, M, D]`` for ``[B, N, H, D]``, and for the matrix where
        ``output_attentions`` is passed, else None. ``scaling`` counts from 1/√D, the scale of every design that has one:
        queries are multiplied by scaling · √D. It cancels out of ``focused``, ``relu``, ``hydra`` and ``angular``, but for their
        eps, which shows in a head where a query has hardly a positive channel.

    Raises:
        ValueError: If the attention learns parameters.

    Example:
        >>> query, key, value = torch.randn(3, 2, 4, 197, 32).unbind(0)
        >>> out, _ = attention_function("focused")(torch.nn.Identity(), query, key, value, None, is_causal=False)
        >>> out.shape
        torch.Size([2, 197, 4, 32])
    """
    layer = create_attention(attention, 2, 1, (1,), **{**_NOTHING_LEARNED, **options})  # sizes are those of what is learned
    learned = next((name for name, _ in layer.named_parameters()), None)
    if learned is not None:
        raise ValueError(
            f"attention {attention!r} learns {learned}, which a function cannot hold: leave the option out, choose one of "
            f"{', '.join(DESIGNS)}, or put the layer itself into the model"
        )

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        _check_call(module, dropout, is_causal, others)
        query, key, value = _rescale(query, scaling), *_repeat_groups(query, key, value)
        layout = _layout(layer, query, key, _key_mask(attention_mask))
        out = layer.compute(query, key, value, layout, None).unflatten(2, (query.shape[1], -1))
        return out, _matrix(layer, query, key, value, layout) if others.get("output_attentions") else None

    return attend


def key_mask(
    *, attention_mask: Tensor | None = None, mask_function: Callable[..., Any] | None = None, **others: Any
) -> Tensor | None:
    """Return the mask of a call for transformers' ``AttentionMaskInterface``.

    Args:
        attention_mask: ``[B, M]``, True where a key takes part.
        mask_function: Which keys a query sees: transformers' ``bidirectional_mask_function``.
        others: Sizes and switches, which such a mask does not depend on.

    Returns:
        Boolean, ``[B, 1, 1, M]``, or None for all keys.

    Raises:
        ValueError: If queries shall see different keys.
    """
    if not _bidirectional(mask_function):
        raise ValueError(
            f"here queries see different keys, as in causal attention, which linear attention cannot do: {_KEEP_SOFTMAX}"
        )
    return None if attention_mask is None else attention_mask.bool()[:, None, None, :]


def _mixer_or_softmax(softmax: AttentionFunction) -> AttentionFunction:
    """Return the function of ``"flatten_mixer"``; ``softmax`` is transformers' own."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        mixer = getattr(module, "mixer", None)
        if mixer is None:
            options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **others}
            return softmax(module, query, key, value, attention_mask, **options)
        _check_call(module, dropout, is_causal, others)
        query, key, value = _rescale(query, scaling), *_repeat_groups(query, key, value)
        out = mixer(query, key, value, _key_mask(attention_mask))
        return out.unflatten(2, (query.shape[1], -1)), None

    return attend


def _mixer_mask(**arguments: Any) -> Tensor | None:
    """Return a mask of keys, which suits mixers and softmax; for queries that see different keys, that of ``"sdpa"``."""
    if _bidirectional(arguments.get("mask_function")):
        return key_mask(**arguments)
    mask: Tensor | None = _transformers("AttentionMaskInterface")()["sdpa"](**arguments)
    return mask


def _bidirectional(mask_function: Callable[..., Any] | None) -> bool:
    from transformers.masking_utils import bidirectional_mask_function

    return mask_function is bidirectional_mask_function


def _check_call(module: nn.Module, dropout: float, is_causal: bool | None, others: dict[str, Any]) -> None:
    """Raise ValueError for what cannot be done without the matrix of queries and keys."""
    if getattr(module, "is_causal", True) if is_causal is None else is_causal:  # as transformers' sdpa reads it
        raise ValueError(f"this attention is causal, which linear attention is not: {_KEEP_SOFTMAX}")
    if dropout:
        raise ValueError(
            f"there are no attention weights to drop, got dropout {dropout}: load the model with attention_dropout=0.0 "
            "(attention_probs_dropout_prob=0.0 for ViT and DINOv2)"
        )
    for name in ("position_bias", "s_aux", "sliding_window", "softcap"):
        if others.get(name) is not None:
            raise ValueError(
                f"{name} changes weights of single query-key pairs, which linear attention never forms: {_KEEP_SOFTMAX}"
            )


def _key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Return the mask of a call as boolean ``[B, 1, 1, M]``; it may have been made by the user, as zeros and minus infinity."""
    if attention_mask is None:
        return None
    if attention_mask.ndim != 4 or attention_mask.shape[1:3] != (1, 1):
        raise ValueError(
            f"attention_mask is {shape_of(attention_mask)}: without the query × key matrix no single query-key pairs can be left "
            "out, but keys can: pass [batch, keys], or [batch, 1, 1, keys], True where a key takes part"
        )
    return attention_mask if attention_mask.dtype == torch.bool else kept_keys("attention_mask", attention_mask)


def _rescale(query: Tensor, scaling: float | None) -> Tensor:
    channels = query.shape[3]
    return query if scaling is None or scaling == channels**-0.5 else query * (scaling * channels**0.5)


def _repeat_groups(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values once for each head of the queries, where groups of heads share them."""
    groups = query.shape[1] // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


def _layout(layer: GridAttention, query: Tensor, key: Tensor, mask: Tensor | None) -> Layout:
    cross = query.shape[2] != key.shape[2]
    if cross and not layer.attends_elsewhere:
        raise ValueError(
            f"{type(layer).__name__} mixes a token with its own value: it cannot attend from {query.shape[2]} queries to "
            f'{key.shape[2]} keys, keep "sdpa" there'
        )
    return Layout((query.shape[2],), (key.shape[2],), mask, cross)


def _matrix(layer: GridAttention, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    return layer.weights(query, *layout.hide(key, value), layout)


def _register(implementation: str, attend: AttentionFunction, mask: MaskFunction) -> None:
    _transformers("AttentionInterface").register(implementation, attend)
    _transformers("AttentionMaskInterface").register(implementation, mask)


def _transformers(name: str) -> Any:
    """Return a class of transformers, which is imported only here."""
    try:
        import transformers
    except ImportError:
        raise ValueError("transformers is not installed: pip install transformers") from None
    found = getattr(transformers, name, None)
    if found is None:
        raise ValueError(f"transformers {transformers.__version__} has no {name}: pip install -U transformers")
    return found
