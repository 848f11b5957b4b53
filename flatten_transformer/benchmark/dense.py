"""Cost of detectors and segmenters by part, at the image sizes of the papers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flatten_transformer.models.cost import count_parameters

PROPOSALS = 1000  # boxes per image in the box heads, as papers count
MASKS = 100  # of these, in the mask head
DETECTION_SIZE, SEGMENTATION_SIZE = (800, 1280), (512, 2048)  # height and width in pixels
_PVT: dict[str, Any] = {"backbone": "flatten_pvt_tiny"}
_SWIN: dict[str, Any] = {"backbone": "flatten_swin_tiny_patch4_224"}
_NORMED = {**_SWIN, "feature_norm": True}
_SOFTMAX = {"backbone_args": {"attn_types": "SSSS"}}


class Published(NamedTuple):
    """A model of the paper, and its GMACs as the paper reports them (arXiv 2308.00442; softmax: its baselines)."""

    name: str
    model_args: dict[str, Any]
    gmacs: float | None = None

    @property
    def title(self) -> str:
        """Display name of model and backbone."""
        return f"{self.name}, {self.model_args['backbone']}{', softmax' if 'backbone_args' in self.model_args else ''}"


DETECTORS = (
    Published("mask_rcnn", _PVT, 244),
    Published("mask_rcnn", {**_PVT, **_SOFTMAX}, 240),
    Published("mask_rcnn", _NORMED, 268),
    Published("mask_rcnn", {**_NORMED, **_SOFTMAX}, 267),
    Published("retinanet", _PVT),
    Published("cascade_mask_rcnn", {**_NORMED, "box_convs": 4}),
    Published("cascade_mask_rcnn", {**_NORMED, "backbone": "flatten_swin_small_patch4_224", "box_convs": 4}),
)
SEGMENTERS = (
    Published("semantic_fpn", _PVT, 169),
    Published("semantic_fpn", {**_PVT, **_SOFTMAX}, 158),
    Published("upernet", _SWIN, 946),
    Published("upernet", {**_SWIN, **_SOFTMAX}, 945),
)


class DenseCost(NamedTuple):
    """Parameters, and multiply-accumulates of one image by part."""

    parameters: int
    parts: dict[str, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all parts."""
        return sum(self.parts.values())


def detector_cost(name: str, model_args: dict[str, Any], size: tuple[int, int] = DETECTION_SIZE) -> DenseCost:
    """Return the cost of a detector of COCO's 80 classes, counted on the meta device: nothing is computed.

    Heads are counted as in papers, on 1,000 proposals and 100 masks.

    Args:
        name: Detector name.
        model_args: Options of its builder.
        size: Image height and width in pixels.

    Example:
        >>> cost = detector_cost("mask_rcnn", {"backbone": "flatten_pvt_tiny"})
        >>> cost.parameters, round(cost.macs / 1e9), round(cost.parts["backbone"] / 1e9)
        (31808245, 212, 42)
    """
    from flatten_transformer.tasks.detection.model import build_detector

    with torch.device("meta"):
        detector = build_detector(name, {**model_args, "pretrained": False}, num_classes=80, in_chans=3)
        core: Any = detector.core.eval()
        features, pyramid = _count(core.backbone, torch.zeros(1, 3, *size))
        maps, channels, heads = list(features.values()), core.backbone.out_channels, getattr(core, "roi_heads", None)
        boxes, masks = torch.zeros(PROPOSALS, channels, 7, 7), torch.zeros(MASKS, channels, 14, 14)
        stages = [] if heads is None else getattr(heads, "stages", [heads])
        parts = {
            "backbone": pyramid["body"],
            "FPN": pyramid[""] - pyramid["body"],
            "RPN or head": _macs(core.head if heads is None else core.rpn.head, maps),
            "boxes": sum(_macs(nn.Sequential(stage.box_head, stage.box_predictor), boxes) for stage in stages),
            "masks": _macs(nn.Sequential(heads.mask_head, heads.mask_predictor), masks) if heads and detector.has_masks else 0,
        }
        return DenseCost(count_parameters(detector), parts)


def segmenter_cost(name: str, model_args: dict[str, Any], size: tuple[int, int] = SEGMENTATION_SIZE) -> DenseCost:
    """Return the cost of a segmenter of ADE20K's 150 classes, counted on the meta device: nothing is computed.

    The parameters include the auxiliary head, which only training uses.

    Args:
        name: Segmenter name.
        model_args: Options of its builder.
        size: Image height and width in pixels.

    Example:
        >>> cost = segmenter_cost("semantic_fpn", {"backbone": "flatten_pvt_tiny"})
        >>> cost.parameters, round(cost.macs / 1e9), round(cost.parts["backbone"] / 1e9)
        (13542806, 77, 43)
    """
    from flatten_transformer.tasks.segmentation.model import build_segmenter

    with torch.device("meta"):
        segmenter = build_segmenter(name, {**model_args, "pretrained": False}, num_classes=150, in_chans=3)
        _, macs = _count(segmenter.eval(), torch.zeros(1, 3, *size))
        parts = {"backbone": macs["encoder.model"], "decoder": macs[""] - macs["encoder.model"]}
        return DenseCost(count_parameters(segmenter), parts)


@torch.no_grad()
def _count(module: nn.Module, x: Any) -> tuple[Any, dict[str, int]]:
    """Run a module; return its output and the multiply-accumulates by submodule name, ``""`` for all."""
    with FlopCounterMode(display=False) as counter:
        out = module(x)
    flops = {name.partition(".")[2]: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    return out, {name: count // 2 for name, count in flops.items()}


def _macs(module: nn.Module, x: Any) -> int:
    return _count(module, x)[1][""]
