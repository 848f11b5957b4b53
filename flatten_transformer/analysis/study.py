"""Study of one model on one image: the numbers of every layer, and the data of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flatten_transformer.analysis.angles import Angles, measure_angles
from flatten_transformer.analysis.capture import CapturedAttention, capture
from flatten_transformer.analysis.metrics import LayerNumbers, measure
from flatten_transformer.analysis.models import AnalyzedModel
from flatten_transformer.analysis.plots import MatrixView, QueryView, view_matrix, view_query
from flatten_transformer.analysis.selection import check_index, finest_grid, select_layer, select_query


@dataclass(frozen=True)
class Options:
    """Options of a study.

    Args:
        query: Row and column of the query token; None chooses one.
        block: Index of the layer whose matrix and angles are shown; negative counts from the last.
        head: Index of the head that pictures show.
        top_k: Weights of a row that count for its top-k mass.
        channels: Channels of each head that are sampled, at most.
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
    """The result of a study.

    Args:
        model: The model and its image.
        layers: Numbers, one for each attention.
        angles: Effect of focusing on angles, by layer name; focused layers only.
        query: Row and column of the query token.
        queries: Its attention, in the layers over the whole image.
        matrix: Matrices of the chosen layer and head.
    """

    model: AnalyzedModel
    layers: tuple[LayerNumbers, ...]
    angles: dict[str, Angles]
    query: tuple[int, int] | None
    queries: tuple[QueryView, ...]
    matrix: MatrixView


def study_model(model: AnalyzedModel, options: Options) -> Study:
    """Study a model.

    Args:
        model: The model and its image.
        options: Layer, head, query and sampling.

    Raises:
        ValueError: If there is no such layer, head or query, or all layers are too large; the message lists what exists.
    """
    attentions = capture(model.network, model.pixels)
    selected = _select(attentions, options)
    small = [attention for attention in attentions if _fits(attention, options)]
    query, queries = None, []
    if grid := finest_grid(attentions):
        query = select_query(options.query, model.image.movedim(2, 0), grid)
        for attention in small:
            head = min(options.head, attention.heads - 1)  # a layer may have fewer than the selected one
            if view := view_query(attention, query, grid, head=head, channels=options.channels):
                queries.append(view)
    elif options.query is not None:
        raise ValueError(f"no attention of {model.label} has the whole image on a grid: leave query out")
    numbers = {"top_k": options.top_k, "channels": options.channels, "max_tokens": options.max_tokens}
    layers = tuple(measure(attention, **numbers) for attention in attentions)
    angles = {attention.name: result for attention in small if (result := measure_angles(attention)) is not None}
    matrix = view_matrix(selected, head=options.head, channels=options.channels)
    return Study(model, layers, angles, query, tuple(queries), matrix)


def _select(attentions: Sequence[CapturedAttention], options: Options) -> CapturedAttention:
    """Return the selected layer, or raise ValueError if it or its head does not exist or is too large."""
    fitting = [f"{index} {attention.name}" for index, attention in enumerate(attentions) if _fits(attention, options)]
    selected = select_layer(attentions, options.block)
    check_index("head", options.head, selected.heads)
    if not _fits(selected, options):
        smaller = f"choose one of {', '.join(fitting)}" if fitting else "a smaller --img_size makes fewer tokens"
        raise ValueError(
            f"block {options.block}, {selected.name}, has {max(selected.queries, selected.keys)} tokens, above max_tokens "
            f"{options.max_tokens}: {smaller}, or raise --max_tokens: time grows with its cube"
        )
    return selected


def _fits(attention: CapturedAttention, options: Options) -> bool:
    return max(attention.queries, attention.keys) <= options.max_tokens
