"""Metrics of an attention by head: rank of its matrices, sharpness of their rows, similarity of its outputs."""

# B images, or windows of images; N queries, M keys, D channels per head.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatten_transformer.analysis.capture import CapturedAttention
from flatten_transformer.analysis.selection import sample_channels
from flatten_transformer.layers.attention.layout import Decomposition, apply_matrix


def numerical_rank(matrix: Tensor) -> Tensor:
    """Return the numerical rank of ``[..., N, M]``: singular values above max(N, M) · ε · the largest.

    Example:
        >>> numerical_rank(torch.ones(3, 3))
        tensor(1)
    """
    return torch.linalg.matrix_rank(matrix)


def effective_rank(matrix: Tensor) -> Tensor:
    """Return the effective rank of ``[..., N, M]``: exp of the entropy of the normalised singular values.

    Roy & Vetterli, "The effective rank", EUSIPCO 2007: the number of directions that share the matrix, 1 to min(N, M).
    A singular value just above rounding counts as much as the largest for the numerical rank, and almost nothing here.

    Example:
        >>> effective_rank(torch.eye(4)), effective_rank(torch.diag(torch.tensor([1.0, 0.0])))
        (tensor(4.), tensor(1.))
    """
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(dim=-1).exp()


def row_shares(matrix: Tensor) -> Tensor:
    """Return the magnitudes of each row divided by their sum, ``[..., N, M]``; of non-negative rows that sum to 1, the rows.

    Example:
        >>> row_shares(torch.tensor([[3.0, -1.0]]))
        tensor([[0.7500, 0.2500]])
    """
    magnitudes = matrix.abs()
    return magnitudes / magnitudes.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)


def row_entropy_bits(matrix: Tensor) -> Tensor:
    """Return the mean entropy of the rows' :func:`row_shares` of ``[..., N, M]``, in bits: 0 (one key) to log2 M (uniform).

    Example:
        >>> round(float(row_entropy_bits(torch.ones(2, 8))), 5)
        3.0
    """
    return torch.special.entr(row_shares(matrix)).sum(dim=-1).mean(dim=-1) / torch.log(torch.tensor(2.0)).to(matrix)


def top_mass(matrix: Tensor, top_k: int) -> Tensor:
    """Return the mean share, 0 to 1, of the ``top_k`` largest magnitudes in each row of ``[..., N, M]``.

    Example:
        >>> top_mass(torch.tensor([[0.5, 0.25, 0.25, 0.0]]), 2)
        tensor(0.7500)
    """
    return row_shares(matrix).topk(min(top_k, matrix.shape[-1]), dim=-1).values.sum(dim=-1).mean(dim=-1)


def token_similarity(tokens: Tensor) -> Tensor:
    """Return the mean cosine of all pairs of different tokens of ``[..., N, D]``: 1 where all point the same way.

    Example:
        >>> token_similarity(torch.eye(4)), token_similarity(torch.ones(4, 2))
        (tensor(0.), tensor(1.0000))
    """
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    count = tokens.shape[-2]
    every = unit.sum(dim=-2).square().sum(dim=-1)  # all pairs, a token with itself included
    return (every - unit.square().sum(dim=(-2, -1))) / max(1, count * (count - 1))


@dataclass(frozen=True)
class MatrixNumbers:
    """Numbers of the matrices of one head: means over its sampled channels, and over windows.

    Args:
        rank: Numerical rank, at most ``min(N, M)``.
        effective_rank: exp of the entropy of the normalised singular values, 1 to ``min(N, M)``.
        entropy_bits: Entropy of the rows' magnitudes, 0 to log2 M.
        top_k_mass: Share, 0 to 1, of the ``top_k`` largest magnitudes of a row.
        similarity: Mean cosine of the output tokens, -1 to 1, before gate and projection.
    """

    rank: float
    effective_rank: float
    entropy_bits: float
    top_k_mass: float
    similarity: float


@dataclass(frozen=True)
class HeadNumbers:
    """One head: its attention alone, and with the depthwise convolution where there is one."""

    attention: MatrixNumbers
    restored: MatrixNumbers | None


@dataclass(frozen=True)
class LayerNumbers:
    """One attention of a model.

    Args:
        name: Its module's name in the model.
        design: Class of the attention, or ``softmax``.
        queries: Tokens N.
        keys: Tokens M.
        head_dim: Channels of a head D.
        windows: Windows an image is cut into.
        negative: Whether a weight of the attention is negative: entropy and mass are then those of the magnitudes.
        heads: Their numbers; none where the matrix exceeds the limit.
    """

    name: str
    design: str
    queries: int
    keys: int
    head_dim: int
    windows: int
    negative: bool
    heads: tuple[HeadNumbers, ...]

    def mean(self, key: str, *, restored: bool = False) -> float | None:
        """Return the mean of a number over the heads; None where it was not measured."""
        chosen = [head.restored if restored else head.attention for head in self.heads]
        values = [getattr(numbers, key) for numbers in chosen if numbers is not None]
        return sum(values) / len(values) if values else None


def measure(attention: CapturedAttention, *, top_k: int = 10, channels: int = 4, max_tokens: int = 1024) -> LayerNumbers:
    """Return the numbers of one attention.

    Rank restoration has a matrix for each channel, Hydra attention and PolaFormer have several a head even without: the
    result is the mean over some channels of each head, evenly spread.

    Args:
        attention: From :func:`flatten_transformer.analysis.capture`.
        top_k: Weights of a row that count for its top-k mass.
        channels: Channels of each head that are sampled, at most.
        max_tokens: An attention with more queries or keys is not measured: singular values cost N³.

    Example:
        >>> import timm
        >>> from flatten_transformer.analysis import capture
        >>> model = timm.create_model("flatten_deit_tiny_patch16_224", depth=1, img_size=96)
        >>> numbers = measure(capture(model, torch.rand(1, 3, 96, 96))[0])
        >>> numbers.queries, numbers.mean("rank") <= 36, numbers.mean("rank", restored=True)
        (36, True, 36.0)
    """
    about = (attention.name, attention.design, attention.queries, attention.keys, attention.head_dim, attention.windows)
    if max(attention.queries, attention.keys) > max_tokens:
        return LayerNumbers(*about, negative=False, heads=())
    parts = attention.decompose()
    heads = tuple(
        _measure_head(attention, parts, sample_channels(attention, head, channels), head, top_k)
        for head in range(attention.heads)
    )
    return LayerNumbers(*about, negative=bool((parts.matrix < 0).any()), heads=heads)


def _measure_head(
    attention: CapturedAttention, parts: Decomposition, channels: Sequence[int], head: int, top_k: int
) -> HeadNumbers:
    groups = sorted(set(attention.groups(channels, parts.matrix.shape[1])))
    out = apply_matrix(parts.matrix, parts.value)  # [B, H, N, D]
    alone = _measure_matrices(parts.matrix[:, groups], out[:, head], top_k)
    if parts.convolved is None:
        return HeadNumbers(alone, None)
    out = out + parts.convolved.unflatten(2, (attention.heads, -1)).transpose(1, 2)
    return HeadNumbers(alone, _measure_matrices(attention.equivalent(channels, parts), out[:, head], top_k))


def _measure_matrices(matrices: Tensor, tokens: Tensor, top_k: int) -> MatrixNumbers:
    """Return the numbers of ``[B, G, N, M]``, and of their output tokens ``[B, N, D]``."""
    return MatrixNumbers(
        float(numerical_rank(matrices).double().mean()),
        float(effective_rank(matrices).mean()),
        float(row_entropy_bits(matrices).mean()),
        float(top_mass(matrices, top_k).mean()),
        float(token_similarity(tokens).mean()),
    )
