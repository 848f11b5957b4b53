"""Semantic segmentation task: Semantic FPN or UPerNet, evaluated by mIoU and mAcc."""

# B batch, C channels, K classes.

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from flatten_transformer.data.mask_numbers import IGNORED
from flatten_transformer.tasks.optimization import Optimization
from flatten_transformer.tasks.overlays import contact_sheet, side_by_side
from flatten_transformer.tasks.per_class import PerClass
from flatten_transformer.tasks.registry import TaskName
from flatten_transformer.tasks.segmentation.data import MaskedBatch, SegmentationData
from flatten_transformer.tasks.segmentation.inference import class_map, image_logits
from flatten_transformer.tasks.segmentation.metrics import class_numbers, mean_accuracy, mean_iou
from flatten_transformer.tasks.segmentation.model import Segmenter, build_segmenter
from flatten_transformer.tasks.segmentation.plots import draw_comparison, draw_overlay
from flatten_transformer.tasks.task import Task

_SHOWN = 4  # images in the report


class SegmentationTask(Task):
    """Train and evaluate a segmenter: pixel cross entropy, IoU and accuracy averaged over the classes.

    Args:
        name: ``"semantic_fpn"`` or ``"upernet"``.
        model_args: Fields of :class:`SegmenterOptions`, such as ``backbone``.
        num_classes: Number of classes K; the command line takes it from the data.
        in_chans: Image channels C; the command line takes it from the data.
        optim: Learning rate, weight decay and warm-up.
        aux_weight: Weight of the auxiliary head's loss, if there is one.
        **averaging: ``ema_decay`` and ``ema_warmup`` of :class:`Task`.

    Raises:
        ValueError: If the model is unknown or a number is out of range.
        FloatingPointError: In training, if the loss is no longer finite.

    Example:
        >>> tiny = {"backbone": "resnet10t", "decoder_channels": 128}
        >>> task = SegmentationTask("semantic_fpn", tiny, num_classes=4, in_chans=3)
        >>> task(torch.rand(2, 3, 40, 60)).shape
        torch.Size([2, 4, 40, 60])
    """

    task_name: ClassVar[TaskName] = "segment"
    model: Segmenter

    def __init__(
        self,
        name: str = "semantic_fpn",
        model_args: dict[str, Any] | None = None,
        *,
        num_classes: int,
        in_chans: int,
        optim: Optimization = Optimization(),  # noqa: B008  # frozen
        aux_weight: float = 0.4,
        **averaging: Any,
    ) -> None:
        if aux_weight < 0:
            raise ValueError(f"aux_weight must be at least 0, got {aux_weight}")
        model = build_segmenter(name, model_args or {}, num_classes, in_chans)
        super().__init__(model, name, model_args or {}, optim, **averaging)
        self.num_classes = num_classes
        self.aux_weight = aux_weight
        self.val_confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED, validate_args=False)
        self.test_confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED, validate_args=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, K, height, width]`` of ``images`` ``[B, C, height, width]`` by :attr:`final_model`."""
        logits: Tensor = self.final_model(images)
        return logits

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of crops."""
        images, masks, _ = batch
        assert isinstance(images, Tensor)
        assert isinstance(masks, Tensor)
        if len(images) == 1 and any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules()):
            raise ValueError(
                f"{self.name} normalises over the images of a batch and cannot learn from one: let each device take at least "
                f"2 at once by data.batch_size and data.device_batch_size, or take semantic_fpn with a FLatten backbone"
            )
        logits, auxiliary = self.model.with_auxiliary(images)
        loss = pixel_loss(logits, masks)
        if auxiliary is not None:
            loss = loss + self.aux_weight * pixel_loss(auxiliary, masks)
        return self.report_loss(loss, batch, batch_idx)

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Update the confusion matrix of the validation images."""
        self._count(batch, self.val_confusion)

    def test_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        """Update the confusion matrix of the test images."""
        self._count(batch, self.test_confusion)

    def on_validation_epoch_end(self) -> None:
        """Log mIoU and mAcc of the validation images."""
        self._log_metrics("val", self.val_confusion)

    def on_test_epoch_end(self) -> None:
        """Log mIoU and mAcc of the test images."""
        self._log_metrics("test", self.test_confusion)

    def classes(self, image: Tensor, height: int, width: int) -> Tensor:
        """Return the class map of an image, ``[height, width]``, by :attr:`final_model`.

        Args:
            image: ``[C, h, w]``, preprocessed; seen whole or through windows, as set in the data.
            height: Output height, such as that of the image file.
            width: Output width.
        """
        preprocessing = self.data.preprocessing
        logits = image_logits(self.final_model, image, window=preprocessing.window, stride=preprocessing.stride)
        return class_map(logits, height, width)

    def _count(self, batch: MaskedBatch, confusion: MulticlassConfusionMatrix) -> None:
        for image, mask in zip(batch.images, batch.masks, strict=True):
            confusion.update(self.classes(image, *mask.shape), mask)

    def _log_metrics(self, split: str, confusion: MulticlassConfusionMatrix) -> None:
        counts = confusion.compute()
        self.log(f"{split}/miou", mean_iou(counts), prog_bar=True)
        self.log(f"{split}/macc", mean_accuracy(counts))
        self.per_class = PerClass(split, self.data.class_names, class_numbers(counts), counts.sum(1).tolist(), "pixels")
        confusion.reset()

    def show_batch(self, batch: MaskedBatch, most: int) -> Image.Image:
        """Return the first crops of a training batch, as augmented, tinted by the class of each pixel."""
        names, masks = self.data.class_names, [mask.cpu().masked_fill(mask.cpu() == IGNORED, -1) for mask in batch.masks[:most]]
        drawn = [draw_overlay(image, mask, names) for image, mask in zip(self.pictures(batch.images[:most]), masks, strict=True)]
        return contact_sheet(drawn, [""] * len(drawn))

    @torch.inference_mode()
    def draw_report(self, folder: Path) -> list[Path]:
        """Draw truth and prediction of the first validation images into a PNG file; return it."""
        data, rows = self.data, []
        assert isinstance(data, SegmentationData)
        self.eval()
        for index in range(min(_SHOWN, data.count("val"))):
            image, truth = data.image("val", index), data.mask("val", index)
            predicted = self.classes(data.preprocessing(image).to(self.device), *truth.shape).cpu()
            rows.append(draw_comparison(image, truth, predicted, data.class_names))
        side_by_side(("truth", "found"), rows, folder / "segments.png")
        return [folder / "segments.png"]


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cross entropy over the pixels with a class, 0 if there are none.

    Args:
        logits: ``[B, K, height, width]``.
        masks: ``[B, height, width]``.
    """
    counted = (masks != IGNORED).sum().clamp(min=1)
    return F.cross_entropy(logits.float(), masks, ignore_index=IGNORED, reduction="sum") / counted
