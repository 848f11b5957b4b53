"""Options of the detectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DetectorOptions:
    """Options of every detector; the defaults are those for COCO.

    Args:
        backbone: timm name of a model with a feature pyramid.
        backbone_args: Further keyword arguments of ``timm.create_model``, such as ``drop_path_rate``; ``checkpoint_path``
            loads the weights of a trained classifier.
        pretrained: Load the weights named in ``backbone_args``; False when a trained detector brings its own.
        min_size: In evaluation, images are resized to this shorter side in pixels,
        max_size: unless the longer side would exceed this.
        size_divisible: Zero-pad images at the right and below to a multiple of this, for backbones that need it; FLatten
            models do not.
        feature_norm: Normalise the backbone's maps first; Swin's do not end with a norm.
        fpn_channels: Pyramid channels C.
        anchor_sizes: Anchor sides of the five maps, in pixels of the resized image.
        score_thresh: Minimum score of a detection.
        nms_thresh: IoU threshold of non-maximum suppression.
        detections_per_img: Maximum number of detections.
    """

    backbone: str
    backbone_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    min_size: int = 800
    max_size: int = 1333
    size_divisible: int = 1
    feature_norm: bool = False
    fpn_channels: int = 256
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    detections_per_img: int = 100

    def __post_init__(self) -> None:
        if len(self.anchor_sizes) != 5:
            raise ValueError(f"anchor_sizes must hold one side for each of five maps, got {list(self.anchor_sizes)}")
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(f"min_size must be at least 1 and at most max_size, got {self.min_size} and {self.max_size}")


@dataclass(frozen=True)
class RegionOptions(DetectorOptions):
    """Options of the R-CNNs.

    Args:
        box_convs: Convolutions, with batch norm, before the hidden layers of a box head: 0 gives two hidden layers, as in the
            papers; 4 gives one after four convolutions, as in Swin's cascades.
        box_dim: Hidden channels.
        proposals: Proposals per image in evaluation; twice as many in training.
        box_samples: Boxes per image sampled to train a box head; small models learn faster from fewer.
    """

    box_convs: int = 0
    box_dim: int = 1024
    proposals: int = 1000
    box_samples: int = 512
