"""Numbers that tell matrices of attention apart: how many directions they have, and how sharp their rows are."""

# N queries, M keys, D channels.

from __future__ import annotations

import torch
from torch import Tensor


def numerical_rank(matrix: Tensor) -> Tensor:
    """Return the numerical rank of ``[..., N, M]``: singular values above max(N, M) · ε · the largest.

    Example:
        >>> numerical_rank(torch.ones(3, 3))
        tensor(1)
    """
    return torch.linalg.matrix_rank(matrix)


def effective_rank(matrix: Tensor) -> Tensor:
    """Return the effective rank of ``[..., N, M]``: exp of the entropy of the normalised singular values.

    Roy & Vetterli, "The effective rank", EUSIPCO 2007: how many directions share the matrix, 1 to min(N, M). A singular
    value that is tiny but above the rounding counts for the numerical rank as much as the largest, here for almost nothing.

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
    """Return the mean entropy of the rows' :func:`row_shares` of ``[..., N, M]``, in bits: 0 one key to log2 M all alike.

    Example:
        >>> round(float(row_entropy_bits(torch.ones(2, 8))), 5)
        3.0
    """
    return torch.special.entr(row_shares(matrix)).sum(dim=-1).mean(dim=-1) / torch.log(torch.tensor(2.0)).to(matrix)


def top_mass(matrix: Tensor, top_k: int) -> Tensor:
    """Return the mean share, 0 to 1, that the ``top_k`` largest magnitudes of each row of ``[..., N, M]`` have.

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
    every = unit.sum(dim=-2).square().sum(dim=-1)  # of all pairs, a token with itself too
    return (every - unit.square().sum(dim=(-2, -1))) / max(1, count * (count - 1))
