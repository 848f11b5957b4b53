"""Cascade R-CNN (arXiv 1712.00726): successive box heads, each trained on the boxes of the previous one at a higher IoU."""

# N proposals of a batch, K classes and the background, C channels.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

Maps = dict[str, Tensor]
Sizes = list[tuple[int, int]]
Dicts = list[dict[str, Tensor]]

IOUS = (0.5, 0.6, 0.7)
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
LOSS_WEIGHTS = (1.0, 0.5, 0.25)


class ClassAgnosticPredictor(nn.Module):
    """Class scores and one class-agnostic box.

    Args:
        in_channels: Feature channels of a proposal.
        num_outputs: Classes and background, K + 1.
    """

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.cls_score = nn.Linear(in_channels, num_outputs)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[N, K + 1]`` and deltas ``[N, 4 · (K + 1)]``, repeated for all classes as torchvision expects."""
        return self.cls_score(features), self.bbox_pred(features).repeat(1, self.num_outputs)


class CascadeRoIHeads(nn.Module):
    """Successive stages of torchvision's box heads, then a mask head on the final boxes.

    In training, each stage matches and samples the boxes of the previous one at its own IoU. At inference, scores are averaged
    over the stages, each on its own input boxes; boxes are those of the last stage.

    Args:
        stages: Box heads with class-agnostic predictors, the first on the proposals.
        loss_weights: Weight of each stage's losses; the mask loss has weight 1.
        mask: torchvision's mask pooling, head and predictor; None for boxes alone.
    """

    def __init__(
        self, stages: Sequence[RoIHeads], loss_weights: Sequence[float], mask: tuple[nn.Module, nn.Module, nn.Module] | None
    ) -> None:
        super().__init__()
        self.stages: Any = nn.ModuleList(stages)
        self.loss_weights = loss_weights
        self.has_masks = mask is not None
        if mask is not None:
            self.mask_roi_pool, self.mask_head, self.mask_predictor = mask

    def forward(
        self, features: Maps, proposals: list[Tensor], image_shapes: Sizes, targets: Dicts | None = None
    ) -> tuple[Dicts, dict[str, Tensor]]:
        """Return detections and losses, like torchvision's RoIHeads: only losses in training, only detections otherwise.

        Args:
            features: Pyramid maps, ``[B, C, height, width]`` each.
            proposals: ``[n, 4]`` per image, corners in pixels.
            image_shapes: Height and width of each image.
            targets: Per image ``boxes``, ``labels`` (0 is background) and, for masks, ``masks``.
        """
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(self, features: Maps, proposals: list[Tensor], image_shapes: Sizes, targets: Dicts) -> dict[str, Tensor]:
        losses, boxes = {}, proposals
        for number, (stage, weight) in enumerate(zip(self.stages, self.loss_weights, strict=True), 1):
            given, matches, labels, regression_targets = stage.select_training_samples(boxes, targets)
            logits, deltas = predict(stage, features, given, image_shapes)
            classifier, regression = fastrcnn_loss(logits, deltas, labels, regression_targets)
            losses[f"loss_classifier_{number}"], losses[f"loss_box_reg_{number}"] = weight * classifier, weight * regression
            boxes = refine(stage, deltas, given, image_shapes)
        if self.has_masks:
            positive = [label > 0 for label in labels]
            given, matches = ([each[kept] for each, kept in zip(all_, positive, strict=True)] for all_ in (given, matches))
            masks, classes = [target["masks"] for target in targets], [target["labels"] for target in targets]
            losses["loss_mask"] = maskrcnn_loss(self._masks(features, given, image_shapes), given, masks, classes, matches)
        return losses

    def _detections(self, features: Maps, proposals: list[Tensor], image_shapes: Sizes) -> Dicts:
        probabilities, boxes = [], proposals
        for stage in self.stages:
            given = boxes
            logits, deltas = predict(stage, features, given, image_shapes)
            probabilities.append(logits.softmax(-1))
            boxes = refine(stage, deltas, given, image_shapes)
        mean = torch.stack(probabilities).mean(0)  # [N, K + 1]
        # log: torchvision applies softmax itself, which gives the mean back
        raw = self.stages[-1].postprocess_detections(mean.log(), deltas, given, image_shapes)
        results = [{"boxes": boxes, "scores": scores, "labels": labels} for boxes, scores, labels in zip(*raw, strict=True)]
        if self.has_masks:
            masks = self._masks(features, [result["boxes"] for result in results], image_shapes)
            for result, mask in zip(results, maskrcnn_inference(masks, [result["labels"] for result in results]), strict=True):
                result["masks"] = mask
        return results

    def _masks(self, features: Maps, boxes: list[Tensor], image_shapes: Sizes) -> Tensor:
        logits: Tensor = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        return logits


def predict(stage: RoIHeads, features: Maps, proposals: list[Tensor], image_shapes: Sizes) -> tuple[Tensor, Tensor]:
    """Return a stage's logits ``[N, K + 1]`` and deltas ``[N, 4 · (K + 1)]`` for the proposals of all images."""
    pooled = stage.box_head(stage.box_roi_pool(features, proposals, image_shapes))
    logits, deltas = stage.box_predictor(pooled)
    return logits, deltas


def refine(stage: RoIHeads, deltas: Tensor, proposals: list[Tensor], image_shapes: Sizes) -> list[Tensor]:
    """Apply a stage's deltas to its proposals, clipped to their images, ``[n, 4]`` each; no gradient passes.

    Args:
        stage: Stage that predicted ``deltas``.
        deltas: ``[N, 4 · (K + 1)]``, equal for all classes.
        proposals: ``[n, 4]`` per image.
        image_shapes: Height and width of each image.
    """
    boxes = stage.box_coder.decode(deltas.detach(), proposals)[:, 0]
    split = boxes.split([len(proposal) for proposal in proposals])
    return [clip_boxes_to_image(boxes, size) for boxes, size in zip(split, image_shapes, strict=True)]
