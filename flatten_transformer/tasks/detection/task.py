"""Object detection as a Lightning module: torchvision's losses, COCO's metrics."""

# B images, n objects of an image, C channels.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from flatten_transformer.tasks.detection.data import CocoData
from flatten_transformer.tasks.detection.metrics import AveragePrecision
from flatten_transformer.tasks.detection.model import build_detector
from flatten_transformer.tasks.detection.plots import draw_detections, draw_truth
from flatten_transformer.tasks.model_file import ModelInfo
from flatten_transformer.tasks.optimization import Optimization
from flatten_transformer.tasks.overlays import side_by_side
from flatten_transformer.tasks.registry import TaskName
from flatten_transformer.tasks.task import Task

Targets = list[dict[str, Tensor]]
Batch = tuple[list[Tensor], Targets, Tensor]  # images, what is on them, and the number of each in its file

_SHOWN = 4  # images of the report,
_WIDTH = 400  # pixels of each


class DetectionTask(Task):
    """Train and judge a detector.

    Args:
        name: ``"mask_rcnn"``, ``"cascade_mask_rcnn"``, ``"faster_rcnn"`` or ``"retinanet"``.
        model_args: What it is built by: ``backbone``, timm's name of a model with a pyramid, ``backbone_args``, and
            whatever :class:`RegionOptions` lists.
        num_classes: Classes; the command line takes it from the data.
        in_chans: Channels C of the images; the command line takes it from the data.
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
        """Return what a file of the detector must say: COCO's ids of its classes too."""
        assert isinstance(self.data, CocoData)
        return replace(super().info(), category_ids=tuple(self.data.category_ids))

    def forward(self, images: Sequence[Tensor]) -> Targets:
        """Return the detections on images ``[C, height, width]`` by :attr:`final_model`, as :class:`Detector` says."""
        detections: Targets = self.final_model(images)
        return detections

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses of one batch."""
        images, targets, _ = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.report_loss(loss, batch, batch_idx)
        parts = {f"train/{name.removeprefix('loss_')}_loss": value for name, value in losses.items()}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin a new comparison."""
        self._begin("val")

    def on_test_epoch_start(self) -> None:
        """Begin a new comparison."""
        self._begin("test")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Take the detections on one validation batch."""
        self._compare(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Take the detections on one test batch."""
        self._compare(batch)

    def on_validation_epoch_end(self) -> None:
        """Log COCO's numbers."""
        self._log_precision("val")

    def on_test_epoch_end(self) -> None:
        """Log COCO's numbers."""
        self._log_precision("test")

    def _begin(self, split: Any) -> None:
        assert isinstance(self.data, CocoData)
        self.precision = AveragePrecision(self.data.truth(split), masks=self.has_masks and self.data.masks)

    def _compare(self, batch: Batch) -> None:
        images, targets, _ = batch
        assert self.precision is not None
        self.precision.update([int(target["image_id"]) for target in targets], self(images))

    def _log_precision(self, split: str) -> None:
        assert self.precision is not None
        for name, value in self.precision.compute().items():
            if value < 0 and not name.endswith("_ap"):
                continue  # there is no object of that size
            self.log(f"{split}/{name}", value, prog_bar=name.endswith("_ap"), sync_dist=True)  # alike on every device
        self.precision = None

    @torch.inference_mode()
    def draw_report(self, folder: Path) -> list[Path]:
        """Draw the first validation images, the truth on the left, what is found on the right, into a PNG file; return it."""
        data, rows = self.data, []
        assert isinstance(data, CocoData)
        self.eval()
        for index in range(min(_SHOWN, len(data.truth("val").images))):
            image, names = data.image("val", index), data.class_names
            found = self([data.preprocessing(image).to(self.device)])[0]
            scale = max(1, _WIDTH // max(image.size))  # captions do not fit small images
            truth = draw_truth(image, data.entry("val", index), names, scale)
            rows.append((truth, draw_detections(image, found, names, threshold=0.5, scale=scale)))
        side_by_side(("truth", "found"), rows, folder / "detections.png")
        return [folder / "detections.png"]
