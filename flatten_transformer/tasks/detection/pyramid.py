"""Feature pyramid on any timm backbone, and anchors with its strides."""

# B images of one size, C channels.

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7


class FeaturePyramid(nn.Module):
    """Feature pyramid network (arXiv 1612.03144) for torchvision's detectors.

    Args:
        body: Result of ``timm.create_model(..., features_only=True)``, with NCHW or NHWC maps.
        strides: Strides of the maps to use, in pixels, finest first.
        out_channels: Channels C of every pyramid map.
        norm: Apply a channel norm to each map first, for backbones whose stages end without one.
        convolved: Add two coarser maps by convolution (RetinaNet) instead of one by subsampling (R-CNN).

    Raises:
        ValueError: If the body has no map at a stride.

    Example:
        >>> import timm
        >>> pyramid = FeaturePyramid(timm.create_model("resnet18", features_only=True), (4, 8, 16, 32), 64)
        >>> [tuple(map_.shape[1:]) for map_ in pyramid(torch.rand(1, 3, 64, 96)).values()]
        [(64, 16, 24), (64, 8, 12), (64, 4, 6), (64, 2, 3), (64, 1, 2)]
    """

    def __init__(
        self, body: nn.Module, strides: Sequence[int], out_channels: int, *, norm: bool = False, convolved: bool = False
    ) -> None:
        super().__init__()
        info: Any = body.feature_info  # timm's FeatureInfo
        reductions = info.reduction()
        missing = [stride for stride in strides if stride not in reductions]
        if missing:
            raise ValueError(
                f"the backbone has maps at strides {reductions}, but a detector needs {list(strides)}: "
                "take one with a pyramid, such as flatten_swin_tiny_patch4_224 or flatten_pvt_tiny"
            )
        # the last map of a stride: its features are the richest
        self.indices = [max(index for index, reduction in enumerate(reductions) if reduction == stride) for stride in strides]
        channels = [info.channels()[index] for index in self.indices]
        extra = LastLevelP6P7(channels[-1], out_channels) if convolved else LastLevelMaxPool()
        self.strides = [*strides, *(2 ** (n + 1) * strides[-1] for n in range(2 if convolved else 1))]
        self.out_channels = out_channels
        self.body = body
        self.norms = nn.ModuleList(LayerNorm2d(width) if norm else nn.Identity() for width in channels)
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return maps ``[B, C, height / stride, width / stride]``, finest first, of images ``[B, in_chans, height, width]``."""
        maps = list(self.body(images))
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":
            maps = [map_.permute(0, 3, 1, 2) for map_ in maps]
        normed = (norm(maps[index]) for norm, index in zip(self.norms, self.indices, strict=True))
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(level), map_) for level, map_ in enumerate(normed)))
        return pyramid


class StridedAnchors(AnchorGenerator):
    """Anchors at fixed strides, in float32.

    torchvision derives the stride as image size // map size, which is wrong if the stride does not divide the image: 801
    pixels over 201 cells would put anchors at every third pixel.

    Args:
        sizes: Anchor sides of each map in pixels: the square root of their area.
        strides: Stride of each map in pixels.

    Example:
        >>> anchors = StridedAnchors(((32,),), (4,))
        >>> boxes = anchors(ImageList(torch.zeros(1, 3, 9, 9), [(9, 9)]), [torch.zeros(1, 8, 3, 3)])[0]
        >>> boxes.shape, boxes[-2].tolist()
        (torch.Size([27, 4]), [-8.0, -8.0, 24.0, 24.0])
    """

    def __init__(self, sizes: Sequence[Sequence[int]], strides: Sequence[int]) -> None:
        super().__init__(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * len(sizes))
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, ``[cells · anchors per cell, 4]``, corners in pixels."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [map_.shape[-2:] for map_ in feature_maps]
        anchors: list[Tensor] = self.grid_anchors(grids, [(stride, stride) for stride in self.strides])
        return [torch.cat(anchors)] * len(image_list.image_sizes)


def octaves(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return three anchor sizes per size, a third of an octave apart, as in RetinaNet (arXiv 1708.02002).

    Example:
        >>> octaves([32, 64])
        [(32, 40, 50), (64, 80, 101)]
    """
    return [tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in sizes]
