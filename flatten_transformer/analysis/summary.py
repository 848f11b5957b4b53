"""The numbers of an attention, head by head: ranks and sharpness, with rank restoration and without."""

# B images, or windows of images; N queries, M keys, D channels per head.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flatten_transformer.analysis.looks import Look
from flatten_transformer.analysis.measures import (
    effective_rank,
    numerical_rank,
    row_entropy_bits,
    token_similarity,
    top_mass,
)
from flatten_transformer.layers.attention.layout import Decomposition, apply_matrix


@dataclass(frozen=True)
class MatrixNumbers:
    """Numbers of the matrices of one head: means over its channels that were looked at, and over windows.

    Args:
        rank: Numerical rank, at most ``min(N, M)``.
        effective_rank: exp of the entropy of the normalised singular values, 1 to ``min(N, M)``.
        entropy_bits: Of the rows' magnitudes, 0 to log2 M.
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
        name: Of its module.
        design: Class of the attention, or ``softmax``.
        queries: Tokens N.
        keys: Tokens M.
        head_dim: Channels of a head D.
        windows: Windows an image is cut into.
        negative: Whether a weight of the attention is negative: entropy and mass are then those of the magnitudes.
        heads: Their numbers; none where the matrix is larger than was asked for.
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


def measure(look: Look, *, top_k: int = 10, channels: int = 4, max_tokens: int = 1024) -> LayerNumbers:
    """Return the numbers of one attention.

    Rank restoration has a matrix for each channel, Hydra attention and PolaFormer have several a head even without: of
    each head some channels are looked at, evenly spread, and their mean is given.

    Args:
        look: From :func:`flatten_transformer.analysis.capture`.
        top_k: Of the top-k mass.
        channels: How many channels of each head are looked at, at most.
        max_tokens: An attention with more queries or keys is not measured: singular values cost N³.

    Example:
        >>> import timm
        >>> from flatten_transformer.analysis import capture
        >>> model = timm.create_model("flatten_deit_tiny_patch16_224", depth=1, img_size=96)
        >>> numbers = measure(capture(model, torch.rand(1, 3, 96, 96))[0])
        >>> numbers.queries, numbers.mean("rank") <= 36, numbers.mean("rank", restored=True)
        (36, True, 36.0)
    """
    about = (look.name, look.design, look.queries, look.keys, look.head_dim, look.windows)
    if max(look.queries, look.keys) > max_tokens:
        return LayerNumbers(*about, negative=False, heads=())
    parts = look.decompose()
    heads = tuple(_measure_head(look, parts, sample_channels(look, head, channels), head, top_k) for head in range(look.heads))
    return LayerNumbers(*about, negative=bool((parts.matrix < 0).any()), heads=heads)


def sample_channels(look: Look, head: int, count: int) -> list[int]:
    """Return at most ``count`` channels of a head, evenly spread, counted among the C channels of all heads.

    Raises:
        ValueError: If ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"channels must be at least 1, got {count}")
    count = min(count, look.head_dim)
    return [head * look.head_dim + (2 * index + 1) * look.head_dim // (2 * count) for index in range(count)]


def _measure_head(look: Look, parts: Decomposition, channels: Sequence[int], head: int, top_k: int) -> HeadNumbers:
    groups = sorted(set(look.groups(channels, parts.matrix.shape[1])))
    out = apply_matrix(parts.matrix, parts.value)  # [B, H, N, D]
    alone = _measure_matrices(parts.matrix[:, groups], out[:, head], top_k)
    if parts.convolved is None:
        return HeadNumbers(alone, None)
    out = out + parts.convolved.unflatten(2, (look.heads, -1)).transpose(1, 2)
    return HeadNumbers(alone, _measure_matrices(look.equivalent(channels, parts), out[:, head], top_k))


def _measure_matrices(matrices: Tensor, tokens: Tensor, top_k: int) -> MatrixNumbers:
    """Return the numbers of ``[B, G, N, M]``, and of the tokens ``[B, N, D]`` they make."""
    return MatrixNumbers(
        float(numerical_rank(matrices).double().mean()),
        float(effective_rank(matrices).mean()),
        float(row_entropy_bits(matrices).mean()),
        float(top_mass(matrices, top_k).mean()),
        float(token_similarity(tokens).mean()),
    )
