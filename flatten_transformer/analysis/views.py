"""What pictures show: where a query looks, layer by layer, and the matrix of one layer."""

# N queries, M keys.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatten_transformer.analysis.choice import token_at
from flatten_transformer.analysis.looks import Grid, Look
from flatten_transformer.analysis.summary import sample_channels


@dataclass(frozen=True)
class QueryView:
    """Where one query token looks in one layer.

    Args:
        name: Of the layer.
        token: Row and column of the query on the grid of this layer.
        grid_size: The grid of the queries.
        attention: Weights of the keys on their grid, ``[rows, columns]``.
        restored: With the convolution, the mean over the channels looked at; None where there is none.
    """

    name: str
    token: tuple[int, int]
    grid_size: Grid
    attention: Tensor
    restored: Tensor | None


@dataclass(frozen=True)
class MatrixView:
    """The matrices of one head of one layer: its attention, and the mean convolution of the channels looked at.

    Args:
        name: Of the layer.
        head: Its index.
        attention: ``[N, M]``.
        convolution: ``[N, M]``; None where there is none.
    """

    name: str
    head: int
    attention: Tensor
    convolution: Tensor | None


def view_query(look: Look, query: tuple[int, int], grid_size: Grid, *, head: int, channels: int = 4) -> QueryView | None:
    """Return where a query token looks; None for a layer of windows, or one whose keys lie on no grid that is known.

    Args:
        look: From :func:`flatten_transformer.analysis.capture`.
        query: Row and column on ``grid_size``; a layer with another grid shows the token at the same place of the image.
        grid_size: What ``query`` counts.
        head: Index of the head.
        channels: See :func:`flatten_transformer.analysis.measure`.
    """
    token = token_at(look, query, grid_size)
    if token is None or look.context_grid_size is None or look.grid_size is None:
        return None
    matrix = view_matrix(look, head=head, channels=channels)
    rows, columns = look.context_grid_size
    prefix = look.keys - rows * columns
    attention, restored = (
        None if weights is None else weights[token, prefix:].reshape(rows, columns)
        for weights in (matrix.attention, None if matrix.convolution is None else matrix.attention + matrix.convolution)
    )
    assert attention is not None
    row, column = divmod(token - look.num_prefix_tokens, look.grid_size[1])
    return QueryView(look.name, (row, column), look.grid_size, attention, restored)


def view_matrix(look: Look, *, head: int, channels: int = 4) -> MatrixView:
    """Return the matrices of one head, of the first window where there are several; means over the channels looked at."""
    chosen = sample_channels(look, head, channels)
    matrix, convolution = look.decompose().matrix, look.convolution(chosen)
    groups = look.groups(chosen, matrix.shape[1])
    return MatrixView(look.name, head, matrix[0, groups].mean(0), None if convolution is None else convolution[0].mean(0))


def singular_values(matrix: Tensor) -> Sequence[float]:
    """Return the singular values of ``[N, M]``, the largest first and set to 1."""
    values = torch.linalg.svdvals(matrix)
    return (values / values[0].clamp_min(torch.finfo(values.dtype).tiny)).tolist()
