"""`flatten models`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import timm
from rich.console import Console
from rich.table import Table

from flatten_transformer.benchmark.dense import (
    DETECTION_SIZE,
    DETECTORS,
    MASKS,
    PROPOSALS,
    SEGMENTATION_SIZE,
    SEGMENTERS,
    DenseCost,
    Published,
    detector_cost,
    segmenter_cost,
)
from flatten_transformer.benchmark.models import model_cost
from flatten_transformer.utils.progress import track
from flatten_transformer.utils.suggest import did_you_mean


def models(pattern: str = "*", dense: bool = False) -> None:
    """Print every model: image size, parameters, multiply-accumulates, published top-1, published weights.

    Args:
        pattern: Model name with shell wildcards, such as ``"*swin*"``.
        dense: Print the costs of all detectors and segmenters of the paper instead.

    Raises:
        ValueError: If no model matches the pattern.
    """
    if dense:
        of_detection = f"{DETECTION_SIZE[1]} × {DETECTION_SIZE[0]}, {PROPOSALS} proposals and {MASKS} masks"
        _print_dense("detector", DETECTORS, detector_cost, of_detection)
        _print_dense("segmenter", SEGMENTERS, segmenter_cost, f"{SEGMENTATION_SIZE[1]} × {SEGMENTATION_SIZE[0]}")
        return
    names = timm.list_models(f"flatten_{pattern.removeprefix('flatten_')}")
    if not names:
        raise ValueError(f"no model fits {pattern!r}: {did_you_mean(pattern.strip('*'), timm.list_models('flatten_*'))}")
    rows = []
    with track(names, "counting {}".format, quick=True) as tracked:
        for name in tracked:
            cost = model_cost(name)
            top1 = "" if cost.published_top1 is None else f"{cost.published_top1:.1f} %"
            size, weights = str(cost.image_size), "yes" if cost.has_weights else ""
            rows.append((name, size, f"{cost.parameters / 1e6:.2f} M", f"{cost.macs / 1e9:.2f}", top1, weights))
    headings = ("model", "image", "parameters", "GMACs", "top-1", "weights")
    _print("ImageNet-1K top-1 as the paper reports it, not measured here", headings, rows)


def _print_dense(kind: str, published: Sequence[Published], count: Callable[..., DenseCost], what: str) -> None:
    """Print the costs of the paper's models by part, beside its own figures."""
    rows = []
    with track(published, lambda one: f"counting {one.title}", quick=True) as tracked:
        for one in tracked:
            cost = count(one.name, one.model_args)
            gmacs = (f"{macs / 1e9:.1f}" for macs in (*cost.parts.values(), cost.macs))
            paper = "" if one.gmacs is None else f"{one.gmacs:.0f}"
            rows.append((one.title, f"{cost.parameters / 1e6:.1f} M", *gmacs, paper))
    headings = (f"{kind}, backbone", "parameters", *cost.parts, "all", "paper")
    _print(f"GMACs of one image of {what}", headings, rows)


def _print(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
