"""All that is known of one model on one image: numbers of every layer, and what its pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flatten_transformer.analysis.angles import Angles, measure_angles
from flatten_transformer.analysis.capture import capture
from flatten_transformer.analysis.choice import check_index, choose_look, choose_query, finest_grid
from flatten_transformer.analysis.looks import Look
from flatten_transformer.analysis.subjects import Subject
from flatten_transformer.analysis.summary import LayerNumbers, measure
from flatten_transformer.analysis.views import MatrixView, QueryView, view_matrix, view_query


@dataclass(frozen=True)
class Options:
    """What is looked at.

    Args:
        query: Row and column of the query token; None chooses one.
        block: Index of the layer whose matrix and angles are shown; negative counts from the last.
        head: Index of the head that pictures show.
        top_k: Of the top-k mass.
        channels: Channels of each head that are looked at, at most.
        max_tokens: Attentions with more tokens are left out.

    Raises:
        ValueError: If a number is below 1.
    """

    query: tuple[int, int] | None = None
    block: int = -1
    head: int = 0
    top_k: int = 10
    channels: int = 4
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        for name in ("top_k", "channels", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Study:
    """What came out.

    Args:
        subject: The model and its image.
        layers: Numbers, one for each attention.
        angles: What focusing does to angles, by the name of the layer; focused layers alone.
        query: Row and column of the query token.
        queries: Where it looks, of the layers that attend to the whole image.
        matrix: Of the chosen layer and head.
    """

    subject: Subject
    layers: tuple[LayerNumbers, ...]
    angles: dict[str, Angles]
    query: tuple[int, int] | None
    queries: tuple[QueryView, ...]
    matrix: MatrixView


def conduct(subject: Subject, options: Options) -> Study:
    """Look at a model.

    Args:
        subject: The model and its image.
        options: What is looked at.

    Raises:
        ValueError: If there is no such layer, head or query, or all layers are too large; the message lists what exists.
    """
    looks = capture(subject.model, subject.pixels)
    chosen = _check(looks, options)
    grid, query, queries = finest_grid(looks), None, []
    small = [look for look in looks if _fits(look, options)]
    if grid is not None:
        query = choose_query(options.query, subject.image.movedim(2, 0), grid)
        views = [view_query(look, query, grid, head=_head(look, options), channels=options.channels) for look in small]
        queries = [view for view in views if view is not None]
    elif options.query is not None:
        raise ValueError(f"no attention of {subject.label} has the whole image on a grid: leave query out")
    numbers = {"top_k": options.top_k, "channels": options.channels, "max_tokens": options.max_tokens}
    layers = tuple(measure(look, **numbers) for look in looks)
    angles = {look.name: found for look in small if (found := measure_angles(look)) is not None}
    matrix = view_matrix(chosen, head=options.head, channels=options.channels)
    return Study(subject, layers, angles, query, tuple(queries), matrix)


def _check(looks: Sequence[Look], options: Options) -> Look:
    """Return the chosen layer, or raise ValueError if it or its head does not exist or is too large."""
    fitting = [f"{index} {look.name}" for index, look in enumerate(looks) if _fits(look, options)]
    chosen = choose_look(looks, options.block)
    check_index("head", options.head, chosen.heads)
    if not _fits(chosen, options):
        smaller = f"choose one of {', '.join(fitting)}" if fitting else "a smaller --img_size makes fewer tokens"
        raise ValueError(
            f"block {options.block}, {chosen.name}, has {max(chosen.queries, chosen.keys)} tokens, above max_tokens "
            f"{options.max_tokens}: {smaller}, or raise --max_tokens: time grows with its cube"
        )
    return chosen


def _fits(look: Look, options: Options) -> bool:
    return max(look.queries, look.keys) <= options.max_tokens


def _head(look: Look, options: Options) -> int:
    """Return the head that pictures show of a layer, which may have fewer than the chosen one."""
    return min(options.head, look.heads - 1)
