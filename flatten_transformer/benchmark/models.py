"""`flatten models`: every model of this library, what it costs and what the paper reports for it."""

from __future__ import annotations

from typing import NamedTuple

import timm
import torch

from flatten_transformer.benchmark.detectors import print_detectors
from flatten_transformer.benchmark.segmenters import print_segmenters
from flatten_transformer.models.cost import count_macs, count_parameters

# ImageNet-1K top-1 in % as the paper reports it (arXiv 2308.00442 and its repository); not measured here.
PUBLISHED_TOP1 = {
    "flatten_deit_tiny_patch16_224": 74.1,
    "flatten_pvt_tiny": 77.8,
    "flatten_pvt_small": 81.7,
    "flatten_pvt_v2_b0": 71.1,
    "flatten_pvt_v2_b1": 79.5,
    "flatten_pvt_v2_b2": 82.5,
    "flatten_swin_tiny_patch4_224": 82.1,
    "flatten_swin_small_patch4_224": 83.5,
    "flatten_swin_base_patch4_224": 83.8,
    "flatten_swin_base_patch4_384": 85.0,
    "flatten_cswin_tiny_224": 83.1,
    "flatten_cswin_small_224": 83.8,
    "flatten_cswin_base_224": 84.5,
    "flatten_cswin_base_384": 85.5,
}


class ModelCost(NamedTuple):
    """What a model is and costs at the size it was made for."""

    name: str
    image_size: int  # side in pixels
    parameters: int
    macs: int
    published_top1: float | None  # %
    has_weights: bool


def model_cost(name: str) -> ModelCost:
    """Return the cost of a registered model, counted on the meta device: nothing is computed.

    Example:
        >>> cost = model_cost("flatten_deit_tiny_patch16_224")
        >>> cost.parameters, round(cost.macs / 1e9, 2)
        (6190888, 1.14)
    """
    with torch.device("meta"):
        model = timm.create_model(name)
    input_size = model.pretrained_cfg["input_size"]
    return ModelCost(
        name,
        input_size[1],
        count_parameters(model),
        count_macs(model, input_size),
        PUBLISHED_TOP1.get(name),
        timm.is_model_pretrained(name),
    )


def models(pattern: str = "*", dense: bool = False) -> None:
    """Print every model: image size, parameters, multiply-accumulates, published top-1, published weights.

    Args:
        pattern: Which, with the shell's wildcards, such as ``"*swin*"``.
        dense: Print what the detectors and segmenters of the paper cost instead, all of them.

    Raises:
        ValueError: If no model fits the pattern.
    """
    if dense:
        print_detectors()
        print_segmenters()
        return
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    names = timm.list_models(f"flatten_{pattern.removeprefix('flatten_')}")
    if not names:
        raise ValueError(f"no model fits {pattern!r}: try one of {', '.join(timm.list_models('flatten_*'))}")
    table = Table(title="ImageNet-1K top-1 as the paper reports it, not measured here")
    table.add_column("model", no_wrap=True)
    for heading in ("image", "parameters", "GMACs", "top-1", "weights"):
        table.add_column(heading, justify="right")
    console = Console()
    for name in track(names, description="counting", console=console, transient=True):
        cost = model_cost(name)
        top1 = "" if cost.published_top1 is None else f"{cost.published_top1:.1f} %"
        size, weights = str(cost.image_size), "yes" if cost.has_weights else ""
        table.add_row(name, size, f"{cost.parameters / 1e6:.2f} M", f"{cost.macs / 1e9:.2f}", top1, weights)
    console.print(table)
