"""Detectors small enough for tests, and what they learn from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flatten_transformer.tasks.detection.detector import Detector
from flatten_transformer.tasks.detection.model import build_detector

SIZES = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "mlp_ratios": (2, 2, 2, 2)}
BACKBONE = {**SIZES, "img_size": 64}
SMALL: dict[str, Any] = {
    "backbone": "flatten_pvt_v2_b0",
    "backbone_args": BACKBONE,
    "min_size": 64,
    "max_size": 128,
    "fpn_channels": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
}
NAMES = ("mask_rcnn", "cascade_mask_rcnn", "faster_rcnn", "retinanet")
MakeDetector = Callable[..., Detector]


@pytest.fixture
def make_detector() -> MakeDetector:
    """Builds a detector of random weights, loud enough to detect something, in evaluation mode."""

    def make(name: str = "mask_rcnn", num_classes: int = 3, in_chans: int = 3, **changes: Any) -> Detector:
        torch.manual_seed(0)
        own = {} if name == "retinanet" else {"box_dim": 32}
        detector = build_detector(name, {**SMALL, **own, "score_thresh": 0.0, **changes}, num_classes, in_chans)
        with torch.no_grad():
            for parameter in detector.parameters():
                if parameter.ndim > 1:
                    parameter.add_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5 / 2)
        return detector.eval()

    return make


def target(*boxes: tuple[int, int, int, int], size: tuple[int, int], labels: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Return what is on an image of (height, width): full boxes as masks."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    kinds = torch.tensor(labels or [0] * len(boxes), dtype=torch.int64)
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": kinds, "masks": masks}
