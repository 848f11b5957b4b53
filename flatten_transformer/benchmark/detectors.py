"""What a detector costs at the size that papers count at, part by part."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flatten_transformer.models.cost import count_macs, count_parameters

PROPOSALS = 1000  # boxes that the box heads see, as detectors are counted
MASKS = 100  # of these the mask head sees so many
SIZE = (800, 1280)  # height and width in pixels


_SWIN: dict[str, Any] = {"backbone": "flatten_swin_tiny_patch4_224", "feature_norm": True}
_SOFTMAX = {"backbone_args": {"attn_types": "SSSS"}}
# Detector, arguments, and GMACs as the paper reports them (arXiv 2308.00442; of softmax attention, its baselines').
PUBLISHED: tuple[tuple[str, dict[str, Any], float | None], ...] = (
    ("mask_rcnn", {"backbone": "flatten_pvt_tiny"}, 244),
    ("mask_rcnn", {"backbone": "flatten_pvt_tiny", **_SOFTMAX}, 240),
    ("mask_rcnn", _SWIN, 268),
    ("mask_rcnn", {**_SWIN, **_SOFTMAX}, 267),
    ("retinanet", {"backbone": "flatten_pvt_tiny"}, None),
    ("cascade_mask_rcnn", {**_SWIN, "box_convs": 4}, None),
    ("cascade_mask_rcnn", {**_SWIN, "backbone": "flatten_swin_small_patch4_224", "box_convs": 4}, None),
)


class DetectorCost(NamedTuple):
    """Parameters, and the multiply-accumulates of one image by part, in units."""

    parameters: int
    backbone: int
    pyramid: int
    proposals: int  # the RPN's head, or RetinaNet's whole head
    boxes: int
    masks: int

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of all parts."""
        return self.backbone + self.pyramid + self.proposals + self.boxes + self.masks


def detector_cost(name: str, model_args: dict[str, Any], size: tuple[int, int] = SIZE) -> DetectorCost:
    """Return what a detector of COCO's 80 classes costs, counted on the meta device: nothing is computed.

    The heads are counted as they are in papers, on 1,000 proposals and 100 masks, whatever the image holds.

    Args:
        name: Of the detector.
        model_args: What it is built by.
        size: Height and width of the image in pixels.

    Example:
        >>> cost = detector_cost("mask_rcnn", {"backbone": "flatten_pvt_tiny"})
        >>> cost.parameters, round(cost.macs / 1e9), round(cost.backbone / 1e9)
        (31808245, 212, 42)
    """
    from flatten_transformer.tasks.detection.build import build_detector

    with torch.device("meta"):
        detector = build_detector(name, {**model_args, "pretrained": False}, num_classes=80, in_chans=3)
        core: Any = detector.core.eval()
        pyramid, image = core.backbone, (3, *size)
        maps = list(pyramid(torch.zeros(1, *image)).values())
        channels, heads = pyramid.out_channels, getattr(core, "roi_heads", None)
        boxes, masks = torch.zeros(PROPOSALS, channels, 7, 7), torch.zeros(MASKS, channels, 14, 14)
        backbone = count_macs(pyramid.body, image)
        stages = [] if heads is None else getattr(heads, "stages", [heads])
        return DetectorCost(
            count_parameters(detector),
            backbone,
            count_macs(pyramid, image) - backbone,
            _macs(core.head if heads is None else core.rpn.head, maps),
            sum(_macs(nn.Sequential(stage.box_head, stage.box_predictor), boxes) for stage in stages),
            0 if heads is None or not detector.has_masks else _macs(nn.Sequential(heads.mask_head, heads.mask_predictor), masks),
        )


@torch.no_grad()
def _macs(module: nn.Module, x: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        module(x)
    return int(counter.get_total_flops()) // 2


def print_detectors() -> None:
    """Print what the detectors of the paper cost, part by part, beside its own figures."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    table = Table(title=f"GMACs of one image of {SIZE[1]} × {SIZE[0]}, {PROPOSALS} proposals and {MASKS} masks")
    table.add_column("detector, backbone", no_wrap=True)
    for heading in ("parameters", "backbone", "FPN", "RPN or head", "boxes", "masks", "all", "paper"):
        table.add_column(heading, justify="right")
    console = Console()
    for name, args, published in track(PUBLISHED, description="counting", console=console, transient=True):
        cost = detector_cost(name, args)
        parts = (f"{part / 1e9:.1f}" for part in (*cost[1:], cost.macs))
        softmax = ", softmax" if "backbone_args" in args else ""
        title = f"{name}, {args['backbone']}{softmax}"
        table.add_row(title, f"{cost.parameters / 1e6:.1f} M", *parts, "" if published is None else f"{published:.0f}")
    console.print(table)
