"""What a detector is built by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DetectorOptions:
    """What a detector is built by, besides classes and channels; the defaults are those of COCO.

    Args:
        backbone: timm's name of a model with a pyramid.
        backbone_args: Further keyword arguments of ``timm.create_model``, such as ``drop_path_rate``; ``checkpoint_path``
            takes the weights of a trained classifier.
        pretrained: Load weights that ``backbone_args`` asks for; a file of a trained detector brings its own.
        min_size: In evaluation an image is resized until its shorter side has this many pixels,
        max_size: or its longer side this many, if that comes first.
        size_divisible: Images are padded with zeros at the right and below to a multiple of this, for backbones that do not
            take every size. FLatten models do.
        feature_norm: Normalise the maps of the backbone first; Swin's do not end with a norm.
        fpn_channels: Channels C of the pyramid.
        anchor_sizes: Sides of the anchors of the five maps, in pixels of the resized image.
        score_thresh: Detections below this score are dropped.
        nms_thresh: Of two boxes of one class that overlap by more than this IoU, the better stays.
        detections_per_img: So many of the best are kept.
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
    """What the R-CNNs are built by besides.

    Args:
        box_convs: Convolutions, with batch norm, before the hidden layers of a box head: 0 gives two layers, the heads of
            the papers; 4 gives one behind four convolutions, as Swin's cascades have.
        box_dim: Channels of those layers.
        proposals: Boxes an image that may hold an object, in evaluation; in training twice as many.
        box_samples: Boxes an image that a box head learns from; small models learn faster from fewer.
    """

    box_convs: int = 0
    box_dim: int = 1024
    proposals: int = 1000
    box_samples: int = 512
