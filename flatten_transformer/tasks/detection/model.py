"""Detectors by name: torchvision's and the cascade, on any timm backbone."""

# K classes, C channels of the pyramid.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from flatten_transformer.linearize.build import create_model
from flatten_transformer.tasks.backbone import load_backbone
from flatten_transformer.tasks.building import building, building_backbone, read_options
from flatten_transformer.tasks.detection.cascade import (
    BOX_WEIGHTS,
    IOUS,
    LOSS_WEIGHTS,
    CascadeRoIHeads,
    ClassAgnosticPredictor,
)
from flatten_transformer.tasks.detection.detector import Detector, keep_float32
from flatten_transformer.tasks.detection.options import DetectorOptions, RegionOptions
from flatten_transformer.tasks.detection.pyramid import FeaturePyramid, StridedAnchors, octaves
from flatten_transformer.utils.suggest import did_you_mean


def build_detector(name: str, model_args: Mapping[str, Any], num_classes: int, in_chans: int) -> Detector:
    """Build a detector.

    Args:
        name: ``"mask_rcnn"``, ``"cascade_mask_rcnn"``, ``"faster_rcnn"`` or ``"retinanet"``.
        model_args: Fields of :class:`RegionOptions`; for RetinaNet, of :class:`DetectorOptions`.
        num_classes: Number of classes K, without background.
        in_chans: Image channels.

    Returns:
        A module that maps images of any sizes to detections, or to losses in training.

    Raises:
        ValueError: If the detector, backbone or an argument is unknown.

    Example:
        >>> tiny = {"backbone": "flatten_pvt_v2_b0", "backbone_args": {"img_size": 64}, "fpn_channels": 16, "box_dim": 16}
        >>> detector = build_detector("faster_rcnn", tiny, num_classes=2, in_chans=3).eval()
        >>> detections = detector([torch.rand(3, 64, 80), torch.rand(3, 50, 40)])
        >>> len(detections), sorted(detections[0])
        (2, ['boxes', 'labels', 'scores'])
    """
    if name not in DETECTORS:
        raise ValueError(f"no detector {name!r}: {did_you_mean(name, DETECTORS)}")
    options_type, build = DETECTORS[name]
    options = read_options(options_type, name, model_args)
    with building(name, "model_args"):
        core = build(options, num_classes, in_chans)
    return Detector(
        core,
        first_label=int(isinstance(core, FasterRCNN)),  # whose 0 is the background
        has_masks=isinstance(core, MaskRCNN),
        backbone=options.backbone,
        backbone_args=options.backbone_args,
    )


def _pyramid(options: DetectorOptions, in_chans: int, *, convolved: bool = False) -> FeaturePyramid:
    args = {**options.backbone_args, "in_chans": in_chans}
    path = args.pop("checkpoint_path", None)
    if not options.pretrained:
        args["pretrained"] = False
    with building_backbone(options.backbone):
        body = create_model(options.backbone, features_only=True, **args)
    if path and options.pretrained:
        load_backbone(body, options.backbone, args, path)
    strides = (8, 16, 32) if convolved else (4, 8, 16, 32)
    return FeaturePyramid(body, strides, options.fpn_channels, norm=options.feature_norm, convolved=convolved)


def _transform(options: DetectorOptions, in_chans: int) -> dict[str, Any]:
    """Return arguments of torchvision's transform, used here only to resize in evaluation."""
    return {
        "min_size": options.min_size,
        "max_size": options.max_size,
        "image_mean": [0.0] * in_chans,
        "image_std": [1.0] * in_chans,
        "size_divisible": options.size_divisible,
        "_skip_resize": True,
    }


def _retinanet(options: DetectorOptions, num_classes: int, in_chans: int) -> RetinaNet:
    pyramid = _pyramid(options, in_chans, convolved=True)
    core = RetinaNet(
        pyramid,
        num_classes,
        anchor_generator=StridedAnchors(octaves(options.anchor_sizes), pyramid.strides),
        score_thresh=options.score_thresh,
        nms_thresh=options.nms_thresh,
        detections_per_img=options.detections_per_img,
        **_transform(options, in_chans),
    )
    keep_float32(core.head)
    return core


def _box_head(options: RegionOptions, size: int) -> TwoMLPHead | FastRCNNConvFCHead:
    channels = options.fpn_channels
    if options.box_convs:
        convs = [channels] * options.box_convs
        return FastRCNNConvFCHead((channels, size, size), convs, [options.box_dim], norm_layer=nn.BatchNorm2d)
    return TwoMLPHead(channels * size**2, options.box_dim)


def _roi_align(size: int, strides: Sequence[int]) -> MultiScaleRoIAlign:
    """Return torchvision's pooling with fixed strides, which it would otherwise infer from its first image."""
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides[:4]]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[3])))
    return pool


def _region_detector(
    options: RegionOptions, pyramid: FeaturePyramid, kind: type[FasterRCNN], num_classes: int, in_chans: int, **mask: nn.Module
) -> FasterRCNN:
    core = kind(
        pyramid,
        rpn_anchor_generator=StridedAnchors([(size,) for size in options.anchor_sizes], pyramid.strides),
        rpn_pre_nms_top_n_train=2 * options.proposals,
        rpn_post_nms_top_n_train=2 * options.proposals,
        rpn_pre_nms_top_n_test=options.proposals,
        rpn_post_nms_top_n_test=options.proposals,
        box_roi_pool=_roi_align(7, pyramid.strides),
        box_batch_size_per_image=options.box_samples,
        box_head=_box_head(options, size=7),
        box_predictor=FastRCNNPredictor(options.box_dim, num_classes + 1),
        box_score_thresh=options.score_thresh,
        box_nms_thresh=options.nms_thresh,
        box_detections_per_img=options.detections_per_img,
        **mask,
        **_transform(options, in_chans),
    )
    keep_float32(core.rpn.head)
    keep_float32(core.roi_heads.box_predictor)
    return core


def _faster_rcnn(options: RegionOptions, num_classes: int, in_chans: int) -> FasterRCNN:
    return _region_detector(options, _pyramid(options, in_chans), FasterRCNN, num_classes, in_chans)


def _mask_rcnn(options: RegionOptions, num_classes: int, in_chans: int) -> FasterRCNN:
    channels, pyramid = options.fpn_channels, _pyramid(options, in_chans)
    mask = {
        "mask_roi_pool": _roi_align(14, pyramid.strides),
        "mask_head": MaskRCNNHeads(channels, (channels,) * 4, dilation=1),
        "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
    }
    keep_float32(mask["mask_predictor"])
    return _region_detector(options, pyramid, MaskRCNN, num_classes, in_chans, **mask)


def _cascade_mask_rcnn(options: RegionOptions, num_classes: int, in_chans: int) -> FasterRCNN:
    """Return Mask R-CNN with its heads replaced by a cascade."""
    core = _mask_rcnn(options, num_classes, in_chans)
    plain = core.roi_heads
    stages = [
        RoIHeads(
            plain.box_roi_pool,
            _box_head(options, size=7),
            ClassAgnosticPredictor(options.box_dim, num_classes + 1),
            fg_iou_thresh=iou,
            bg_iou_thresh=iou,
            batch_size_per_image=options.box_samples,
            positive_fraction=0.25,
            bbox_reg_weights=weights,
            score_thresh=options.score_thresh,
            nms_thresh=options.nms_thresh,
            detections_per_img=options.detections_per_img,
        )
        for iou, weights in zip(IOUS, BOX_WEIGHTS, strict=True)
    ]
    for stage in stages:
        keep_float32(stage.box_predictor)
    core.roi_heads = CascadeRoIHeads(stages, LOSS_WEIGHTS, (plain.mask_roi_pool, plain.mask_head, plain.mask_predictor))
    return core


DETECTORS: dict[str, tuple[type[DetectorOptions], Callable[..., Any]]] = {
    "mask_rcnn": (RegionOptions, _mask_rcnn),
    "cascade_mask_rcnn": (RegionOptions, _cascade_mask_rcnn),
    "faster_rcnn": (RegionOptions, _faster_rcnn),
    "retinanet": (DetectorOptions, _retinanet),
}
