"""What a segmenter costs at the size that papers count at, part by part."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from flatten_transformer.models.cost import count_macs, count_parameters

SIZE = (512, 2048)  # height and width in pixels

_PVT: dict[str, Any] = {"backbone": "flatten_pvt_tiny"}
_SWIN: dict[str, Any] = {"backbone": "flatten_swin_tiny_patch4_224"}
_SOFTMAX = {"backbone_args": {"attn_types": "SSSS"}}
# Segmenter, arguments, and GMACs as the paper reports them (arXiv 2308.00442; of softmax attention, its baselines').
PUBLISHED: tuple[tuple[str, dict[str, Any], float | None], ...] = (
    ("semantic_fpn", _PVT, 169),
    ("semantic_fpn", {**_PVT, **_SOFTMAX}, 158),
    ("upernet", _SWIN, 946),
    ("upernet", {**_SWIN, **_SOFTMAX}, 945),
)


class SegmenterCost(NamedTuple):
    """Parameters, and the multiply-accumulates of one image by part, in units."""

    parameters: int
    backbone: int
    decoder: int  # and the classifier of pixels

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of both parts."""
        return self.backbone + self.decoder


def segmenter_cost(name: str, model_args: dict[str, Any], size: tuple[int, int] = SIZE) -> SegmenterCost:
    """Return what a segmenter of ADE20K's 150 classes costs, counted on the meta device: nothing is computed.

    The auxiliary head, which only a training uses, counts among the parameters.

    Args:
        name: Of the segmenter.
        model_args: What it is built by.
        size: Height and width of the image in pixels.

    Example:
        >>> cost = segmenter_cost("semantic_fpn", {"backbone": "flatten_pvt_tiny"})
        >>> cost.parameters, round(cost.macs / 1e9), round(cost.backbone / 1e9)
        (13542806, 77, 43)
    """
    from flatten_transformer.tasks.segmentation.build import build_segmenter

    with torch.device("meta"):
        segmenter = build_segmenter(name, {**model_args, "pretrained": False}, num_classes=150, in_chans=3)
        encoder: Any = segmenter.encoder
        backbone = count_macs(encoder.model, (3, *size))
        return SegmenterCost(count_parameters(segmenter), backbone, count_macs(segmenter, (3, *size)) - backbone)


def print_segmenters() -> None:
    """Print what the segmenters of the paper cost, part by part, beside its own figures."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    table = Table(title=f"GMACs of one image of {SIZE[1]} × {SIZE[0]}")
    table.add_column("segmenter, backbone", no_wrap=True)
    for heading in ("parameters", "backbone", "decoder", "all", "paper"):
        table.add_column(heading, justify="right")
    console = Console()
    for name, args, published in track(PUBLISHED, description="counting", console=console, transient=True):
        cost = segmenter_cost(name, args)
        parts = (f"{part / 1e9:.1f}" for part in (*cost[1:], cost.macs))
        softmax = ", softmax" if "backbone_args" in args else ""
        title = f"{name}, {args['backbone']}{softmax}"
        table.add_row(title, f"{cost.parameters / 1e6:.1f} M", *parts, "" if published is None else f"{published:.0f}")
    console.print(table)
