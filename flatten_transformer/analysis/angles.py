"""Angles between queries and keys before and after the focused function: Proposition 1 of FLatten, measured."""

# B images, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, relu

from flatten_transformer.analysis.capture import CapturedAttention, CapturedGrid
from flatten_transformer.layers import FocusedLinearAttention
from flatten_transformer.layers.attention.layout import split_heads
from flatten_transformer.ops import reference

BINS = 40  # of the cosines, 0 to 1
_EPS = 1e-6  # of the op


@dataclass(frozen=True)
class Angles:
    """Distribution of the cosines of the query-key pairs of one attention.

    Proposition 1 (arXiv 2308.00442) is about vectors whose largest entries coincide, ``same``, or do not, ``other``: the
    right power pulls the former together and the latter apart.

    Args:
        pairs: Number of pairs, ``same`` and ``other``.
        mean_before: Mean cosine of φ(q) and φ(k) with power 1, of each kind.
        mean_after: Mean cosine after f_p.
        moved_as_stated: Share, 0 to 1, of the pairs whose cosine rose (``same``) or fell (``other``).
        before: Share of the pairs in each of ``BINS`` equal bins from 0 to 1, of each kind.
        after: The same after f_p.
    """

    pairs: dict[str, int]
    mean_before: dict[str, float]
    mean_after: dict[str, float]
    moved_as_stated: dict[str, float]
    before: dict[str, list[float]]
    after: dict[str, list[float]]


def measure_angles(attention: CapturedAttention, head: int | None = None) -> Angles | None:
    """Measure how f_p changes the angles between queries and keys of a focused linear attention.

    Args:
        attention: From :func:`flatten_transformer.analysis.capture`.
        head: Index of one head; None: all of them.

    Returns:
        The angles; None for another attention, or p = 1.
    """
    if not isinstance(attention, CapturedGrid) or not isinstance(attention.module, FocusedLinearAttention):
        return None
    module, layout = attention.module, attention.layout
    if module.focusing_factor == 1:
        return None
    features = positive_features(attention)
    focused = [reference.focused_function(x, module.focusing_factor, norm=module.norm) for x in features]
    heads = slice(None) if head is None else slice(head, head + 1)
    same = features[0].argmax(3)[:, heads, :, None] == features[1].argmax(3)[:, heads, None, :]  # [B, H, N, M]
    kept = torch.ones_like(same)
    if layout.attn_mask is not None:
        kept = kept & layout.attn_mask
    if layout.query_mask is not None:
        kept = kept & layout.query_mask.transpose(2, 3)
    pairs = {"same": same & kept, "other": ~same & kept}
    before, after = (_cosines(*(x[:, heads] for x in pair)) for pair in (features, focused))
    rose = after > before
    return Angles(
        {kind: int(chosen.sum()) for kind, chosen in pairs.items()},
        {kind: _mean(before[chosen]) for kind, chosen in pairs.items()},
        {kind: _mean(after[chosen]) for kind, chosen in pairs.items()},
        {kind: _mean((rose if kind == "same" else ~rose)[chosen].double()) for kind, chosen in pairs.items()},
        {kind: _shares(before[chosen]) for kind, chosen in pairs.items()},
        {kind: _shares(after[chosen]) for kind, chosen in pairs.items()},
    )


@torch.no_grad()
def positive_features(attention: CapturedGrid) -> tuple[Tensor, Tensor]:
    """Return the inputs of f_p in a focused linear attention: queries ``[B, H, N, D]`` and keys ``[B, H, M, D]``."""
    module, layout = attention.module, attention.layout
    query, key, value = (split_heads(tokens, module.num_heads) for tokens in (attention.query, attention.key, attention.value))
    q, k = (relu(x) + _EPS for x in module.condition(query, layout.hide(key, value)[0], layout))
    temperature = module.temperature()
    return (q, k) if temperature is None else (q / temperature[:, None, :], k / temperature[:, None, :])


def _cosines(q: Tensor, k: Tensor) -> Tensor:
    return torch.nn.functional.normalize(q, dim=3) @ torch.nn.functional.normalize(k, dim=3).transpose(2, 3)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0


def _shares(cosines: Tensor) -> list[float]:
    counts = torch.histc(cosines.clamp(0, 1), BINS, 0, 1)
    return (counts / max(1, cosines.numel())).tolist()
