"""Object detection task: torchvision's losses, COCO's metrics."""

# B images, n objects of an image, C channels.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from flatten_transformer.tasks.detection.data import CocoData
from flatten_transformer.tasks.detection.metrics import AveragePrecision
from flatten_transformer.tasks.detection.model import build_detector
from flatten_transformer.tasks.detection.plots import draw_detections, draw_truth
from flatten_transformer.tasks.model_file import ModelInfo
from flatten_transformer.tasks.optimization import Optimization
from flatten_transformer.tasks.overlays import contact_sheet, draw_objects, enlarge, readable_scale, side_by_side
from flatten_transformer.tasks.per_class import PerClass
from flatten_transformer.tasks.registry import TaskName
from flatten_transformer.tasks.task import Task

Targets = list[dict[str, Tensor]]
Batch = tuple[list[Tensor], Targets, Tensor]  # images, targets, and indices in the file

_SHOWN = 4  # images in the report


class DetectionTask(Task):
    """Train and evaluate a detector.

    Args:
        name: ``"mask_rcnn"``, ``"cascade_mask_rcnn"``, ``"faster_rcnn"`` or ``"retinanet"``.
        model_args: Fields of :class:`RegionOptions`, such as ``backbone``, the timm name of a model with a pyramid.
        num_classes: Number of classes; the command line takes it from the data.
        in_chans: Image channels C; the command line takes it from the data.
        optim: Learning rate, weight decay and warm-up.
        **averaging: ``ema_decay`` and ``ema_warmup`` of :class:`Task`.

    Raises:
        ValueError: If the detector or its backbone is unknown or a number is out of range.
        FloatingPointError: In training, if the loss is no longer finite.

    Example:
        >>> tiny = {"backbone": "flatten_pvt_v2_b0", "fpn_channels": 16, "box_dim": 16, "min_size": 64, "max_size": 96}
        >>> task = DetectionTask("faster_rcnn", tiny, num_classes=2, in_chans=3).eval()
        >>> with torch.no_grad():
        ...     len(task([torch.rand(3, 64, 80), torch.rand(3, 50, 40)]))
        2
    """

    task_name: ClassVar[TaskName] = "detect"

    def __init__(
        self,
        name: str = "mask_rcnn",
        model_args: dict[str, Any] | None = None,
        *,
        num_classes: int,
        in_chans: int,
        optim: Optimization = Optimization(lr=1e-4),  # noqa: B008  # frozen
        **averaging: Any,
    ) -> None:
        detector = build_detector(name, model_args or {}, num_classes, in_chans)
        super().__init__(detector, name, model_args or {}, optim, **averaging)
        self.num_classes = num_classes
        self.has_masks = detector.has_masks
        self.precision: AveragePrecision | None = None

    def info(self) -> ModelInfo:
        """Return the description for the model file, with COCO's category ids."""
        assert isinstance(self.data, CocoData)
        return replace(super().info(), category_ids=tuple(self.data.category_ids))

    def forward(self, images: Sequence[Tensor]) -> Targets:
        """Return the detections of :attr:`final_model` on images ``[C, height, width]``, see :class:`Detector`."""
        detections: Targets = self.final_model(images)
        return detections

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses of a batch."""
        images, targets, _ = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.report_loss(loss, batch, batch_idx)
        parts = {f"train/{name.removeprefix('loss_')}_loss": value for name, value in losses.items()}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start a new evaluation."""
        self._begin("val")

    def on_test_epoch_start(self) -> None:
        """Start a new evaluation."""
        self._begin("test")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate detections for COCO evaluation."""
        self._accumulate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate detections for COCO evaluation."""
        self._accumulate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log COCO's metrics."""
        self._log_precision("val")

    def on_test_epoch_end(self) -> None:
        """Log COCO's metrics."""
        self._log_precision("test")

    def _begin(self, split: Any) -> None:
        assert isinstance(self.data, CocoData)
        self.precision = AveragePrecision(self.data.truth(split), masks=self.has_masks and self.data.masks)

    def _accumulate(self, batch: Batch) -> None:
        images, targets, _ = batch
        assert self.precision is not None
        self.precision.update([int(target["image_id"]) for target in targets], self(images))

    def _log_precision(self, split: str) -> None:
        assert self.precision is not None
        for name, value in self.precision.compute().items():
            if value < 0 and not name.endswith("_ap"):
                continue  # no object of that size
            self.log(f"{split}/{name}", value, prog_bar=name.endswith("_ap"), sync_dist=True)  # equal on every device
        numbers, support = self.precision.per_class, self.precision.support
        self.per_class = PerClass(split, self.data.class_names, numbers, support, "objects")
        self.precision = None

    def show_batch(self, batch: Batch, most: int) -> Image.Image:
        """Return the first images of a training batch, as augmented, with their boxes and masks."""
        images, targets, _ = batch
        names, drawn = self.data.class_names, []
        for image, target in list(zip(self.pictures(images), targets, strict=True))[:most]:
            labels, scale = target["labels"].tolist(), readable_scale(image)
            masks = (
                target["masks"].cpu().bool().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
                if "masks" in target
                else None
            )
            boxes = scale * target["boxes"].cpu()
            drawn.append(draw_objects(enlarge(image, scale), boxes, labels, [names[label] for label in labels], masks))
        return contact_sheet(drawn, [""] * len(drawn))

    @torch.inference_mode()
    def draw_report(self, folder: Path) -> list[Path]:
        """Draw truth and detections of the first validation images into a PNG file; return it."""
        data, rows = self.data, []
        assert isinstance(data, CocoData)
        self.eval()
        for index in range(min(_SHOWN, len(data.truth("val").images))):
            image, names = data.image("val", index), data.class_names
            detections = self([data.preprocessing(image).to(self.device)])[0]
            truth = draw_truth(image, data.entry("val", index), names)
            rows.append((truth, draw_detections(image, detections, names, threshold=0.5)))
        side_by_side(("truth", "found"), rows, folder / "detections.png")
        return [folder / "detections.png"]
