"""Image classification task: any timm model, mixup and CutMix, label smoothing."""

# B batch, C channels, K classes.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from flatten_transformer.models.cost import count_macs
from flatten_transformer.tasks.building import cures_of_options
from flatten_transformer.tasks.classification.metrics import ConfidentErrors, Misclassification, class_numbers
from flatten_transformer.tasks.classification.mixing import Mixing
from flatten_transformer.tasks.classification.model import build_model, weights_args
from flatten_transformer.tasks.classification.plots import draw_confusion, draw_images
from flatten_transformer.tasks.optimization import Optimization
from flatten_transformer.tasks.overlays import contact_sheet, enlarge
from flatten_transformer.tasks.per_class import PerClass
from flatten_transformer.tasks.registry import TaskName
from flatten_transformer.tasks.task import Task
from flatten_transformer.utils.font_fallback import shortened

_TITLE = 22  # characters of a class above a small image
_THUMBNAIL = 128  # pixels of a side; smaller training images are enlarged
Batch = tuple[Tensor, Tensor, Tensor]  # images, classes, and indices in the data set


class ClassificationTask(Task):
    """Train and evaluate an image classifier.

    Args:
        name: Any timm model, such as ``flatten_deit_tiny_patch16_224`` or ``resnet18``.
        model_args: Further keyword arguments of ``timm.create_model``, such as ``{"img_size": 32, "depth": 4}``.
        pretrained: Start from the published weights, downloaded if necessary, or from those of a file.
        num_classes: Number of classes K; the command line takes it from the data.
        in_chans: Image channels C; the command line takes it from the data.
        optim: Learning rate, weight decay and warm-up.
        mixing: Mixup and CutMix.
        label_smoothing: Share of the training target spread evenly over all classes.
        **averaging: ``ema_decay`` and ``ema_warmup`` of :class:`Task`.

    Raises:
        ValueError: If the model is unknown or a number is out of range.
        FloatingPointError: In training, if the loss is no longer finite.

    Example:
        >>> task = ClassificationTask("flatten_deit_tiny_patch16_224", {"depth": 1}, num_classes=10, in_chans=1)
        >>> task(torch.rand(2, 1, 224, 224)).shape
        torch.Size([2, 10])
    """

    task_name: ClassVar[TaskName] = "classify"

    def __init__(
        self,
        name: str = "flatten_deit_tiny_patch16_224",
        model_args: dict[str, Any] | None = None,
        *,
        pretrained: bool | Path = False,
        num_classes: int,
        in_chans: int,
        optim: Optimization = Optimization(),  # noqa: B008  # frozen
        mixing: Mixing = Mixing(),  # noqa: B008  # frozen
        label_smoothing: float = 0.1,
        **averaging: Any,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in 0 … 1, below 1, got {label_smoothing}")
        model_args = {**(model_args or {}), **weights_args(pretrained)}
        with cures_of_options("--model.model_args", "--model.pretrained", "--model.pretrained"):
            model = build_model(name, model_args, num_classes, in_chans)
        super().__init__(model, name, model_args, optim, **averaging)
        self.num_classes = num_classes
        self.mixing = mixing
        self.label_smoothing = label_smoothing
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.top5 = nn.ModuleDict()
        if num_classes > 5:
            self.top5 = nn.ModuleDict({f"of_{split}": MulticlassAccuracy(num_classes, 5, "micro") for split in ("val", "test")})
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.confused: Tensor | None = None  # [K, K] of the last validation
        self.errors = ConfidentErrors()
        self._best: tuple[Tensor | None, Sequence[Misclassification]] | None = None  # both, in the best epoch so far

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of ``images`` ``[B, C, height, width]`` by :attr:`final_model`."""
        logits: Tensor = self.final_model(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one mixed batch."""
        images, labels, _ = batch
        mixed, targets = self.mixing(images, labels, self.num_classes)
        logits = self.model(mixed)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        # of a mixed image, the class with the larger share; a mean on the device, fetched once an epoch
        hits = (logits.detach().argmax(1) == targets.argmax(1)).float().mean()
        self.log("train/accuracy", hits, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return self.report_loss(loss, batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Reset the confusion matrix and the errors."""
        self.confusion.reset()
        self.errors.reset()

    def on_test_epoch_start(self) -> None:
        """Reset the confusion matrix."""
        self.confusion.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a validation batch; update the confusion matrix and the errors."""
        logits = self._evaluate(batch, "val", self.val_accuracy)
        _, labels, indices = batch
        self.errors.update(logits, labels, indices)

    def on_validation_epoch_end(self) -> None:
        """Gather the confusion matrix from all devices."""
        self.confused = self.confusion.compute()
        self._count_classes("val", self.confused)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a test batch; update the confusion matrix."""
        self._evaluate(batch, "test", self.test_accuracy)

    def on_test_epoch_end(self) -> None:
        """Gather the numbers of each class from all devices."""
        self._count_classes("test", self.confusion.compute())

    def _count_classes(self, split: str, counts: Tensor) -> None:
        """Keep the numbers of each class, and log F1 averaged over the classes."""
        self.per_class = PerClass(split, self.data.class_names, class_numbers(counts), counts.sum(1).tolist(), "images")
        self.log(f"{split}/macro_f1", self.per_class.mean("f1"), sync_dist=True)  # equal on every device

    def _evaluate(self, batch: Batch, split: str, accuracy: MulticlassAccuracy) -> Tensor:
        images, labels, _ = batch
        logits = self(images)
        accuracy(logits, labels)
        self.confusion.update(logits, labels)
        self.log(f"{split}/loss", F.cross_entropy(logits, labels), batch_size=len(images), sync_dist=True)
        self.log(f"{split}/accuracy", accuracy, prog_bar=True, batch_size=len(images))
        if self.top5:
            top5: Any = self.top5[f"of_{split}"]
            top5(logits, labels)
            self.log(f"{split}/top5", top5, batch_size=len(images))
        return logits

    def count_macs(self) -> int:
        """Return the multiply-accumulates of one image."""
        preprocessing = self.data.preprocessing
        return count_macs(self.model, (preprocessing.in_chans, preprocessing.img_size, preprocessing.img_size))

    def show_batch(self, batch: Batch, most: int) -> Image.Image:
        """Return the first images of a training batch, as augmented, before mixup and CutMix, with their classes."""
        images, labels, _ = batch
        names = [self.data.class_names[label] for label in labels[:most].tolist()]
        pictures = [enlarge(image, max(1, _THUMBNAIL // max(image.size))) for image in self.pictures(images[:most])]
        return contact_sheet(pictures, [shortened(name, _TITLE) for name in names])

    def keep_report(self) -> None:
        """Keep confusion matrix and most confident errors too."""
        super().keep_report()
        self._best = self.confused, self.errors.top

    def draw_report(self, folder: Path) -> list[Path]:
        """Draw confusion matrix and most confident errors of the best epoch, or the last, into PNG files; return them."""
        confused, errors = self._best or (self.confused, self.errors.top)
        if confused is None:
            return []
        names = self.data.class_names
        draw_confusion(confused, names, folder / "confusion.png")
        if not errors:
            return [folder / "confusion.png"]
        names = [shortened(name, _TITLE) for name in names]
        titles = [f"{names[e.predicted]} ({e.probability:.0%}),\nnot {names[e.label]}" for e in errors]
        images = [self.data.image("val", error.image_index) for error in errors]
        draw_images(images, titles, "The surest mistakes on validation images", folder / "mistakes.png")
        return [folder / "confusion.png", folder / "mistakes.png"]
