"""Selection of a layer, a head, channels and a query token; errors list the choices."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from flatten_transformer.analysis.capture import CapturedAttention, Grid


def check_index(name: str, index: int, count: int) -> None:
    """Raise ValueError unless there is an element of this index; the message gives the range."""
    if not 0 <= index < count:
        raise ValueError(f"there is no {name} {index}: {name} must be 0 to {count - 1}")


def select_layer(attentions: Sequence[CapturedAttention], block: int) -> CapturedAttention:
    """Return the attention at an index; negative ones count from the last.

    Raises:
        ValueError: If there is none; the message lists what exists.
    """
    if not -len(attentions) <= block < len(attentions):
        names = ", ".join(f"{index} {attention.name}" for index, attention in enumerate(attentions))
        raise ValueError(f"there is no block {block}: choose one of {names}, or count from the last, -1")
    return attentions[block]


def parse_query(text: str) -> tuple[int, int]:
    """Parse row and column of a query token from the command line.

    Raises:
        ValueError: If the text is malformed.

    Example:
        >>> parse_query("3,12")
        (3, 12)
    """
    if not re.fullmatch(r"\s*\d+\s*,\s*\d+\s*", text):
        raise ValueError(f"query must be ROW,COLUMN of a token, counted from 0, such as 3,12; got {text!r}")
    row, column = map(int, text.split(","))
    return row, column


def finest_grid(attentions: Sequence[CapturedAttention]) -> Grid | None:
    """Return the largest token grid of an attention over the whole image; None if there is none."""
    grids = [attention.grid_size for attention in attentions if attention.windows == 1 and attention.grid_size is not None]
    return max(grids, key=lambda grid: torch.Size(grid).numel(), default=None)


def select_query(query: tuple[int, int] | None, image: Tensor, grid_size: Sequence[int]) -> tuple[int, int]:
    """Return row and column of the query token: the requested one, or the one with the most ink, in colour images the centre.

    Args:
        query: Requested row and column, if any.
        image: ``[channels, height, width]``.
        grid_size: The grid of the tokens.

    Raises:
        ValueError: If there is no such token; the message gives the range.
    """
    rows, columns = grid_size
    if query is None:
        return (rows // 2, columns // 2) if image.shape[0] > 1 else divmod(inkiest_token(image[0], grid_size), columns)
    if query[0] >= rows or query[1] >= columns:
        raise ValueError(f"there is no query {query[0]},{query[1]}: rows are 0 to {rows - 1}, columns 0 to {columns - 1}")
    return query


def token_at(attention: CapturedAttention, query: tuple[int, int], grid_size: Sequence[int]) -> int | None:
    """Return the index of an attention's token at the place of ``query`` on ``grid_size``; None if it has no grid."""
    if attention.windows > 1 or attention.grid_size is None:
        return None
    row, column = (place * own // size for place, own, size in zip(query, attention.grid_size, grid_size, strict=True))
    return attention.num_prefix_tokens + row * attention.grid_size[1] + column


def inkiest_token(image: Tensor, grid_size: Sequence[int]) -> int:
    """Return the token with the most ink (the largest mean grey value) of ``[height, width]``.

    Example:
        >>> inkiest_token(torch.eye(4)[:2].repeat(2, 1), (2, 2))
        0
    """
    rows, columns = grid_size
    means = torch.nn.functional.adaptive_avg_pool2d(image[None, None].float(), (rows, columns))
    return int(means.argmax())


def sample_channels(attention: CapturedAttention, head: int, count: int) -> list[int]:
    """Return at most ``count`` channels of a head, evenly spread, counted among the C channels of all heads.

    Raises:
        ValueError: If ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"channels must be at least 1, got {count}")
    count = min(count, attention.head_dim)
    return [head * attention.head_dim + (2 * index + 1) * attention.head_dim // (2 * count) for index in range(count)]
