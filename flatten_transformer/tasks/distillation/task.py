"""Distillation task: the softmax attentions of a teacher turned linear, in three stages."""

# B batch, C channels, K classes, N tokens.

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.linearize.errors import compared, first, relative_error
from flatten_transformer.linearize.forms import is_linear
from flatten_transformer.tasks.classification.model import build_model, weights_args
from flatten_transformer.tasks.classification.task import Batch, ClassificationTask
from flatten_transformer.tasks.distillation.data import DistillationData
from flatten_transformer.tasks.model_file import ModelInfo
from flatten_transformer.tasks.registry import TaskName

Stage = Literal[1, 2, 3]


class DistillationTask(ClassificationTask):
    """Train the linear form of a softmax classifier to do what the classifier does.

    Stage 1 trains the linear attentions alone, each on the inputs of the teacher's attention, to give its output. Stage 2
    trains all weights for the teacher's final features and logits. Stage 3 trains all weights for the labels, and for the outputs
    of the teacher's attentions. The first two need no labels. Layer matching alone is not enough, nor is the end alone
    (ViT-AdaLA, arXiv 2603.16063); outputs are matched instead of matrices (Copy the Same, arXiv 2609.35745).

    Args:
        name: Any timm model with softmax attention.
        model_args: Further keyword arguments of ``timm.create_model``, and ``linearize``, the options of
            :func:`flatten_transformer.linearize`; by default ``{}``. ``checkpoint_path`` is the student of an earlier stage.
        pretrained: The teacher's weights: a file, or true for the published ones.
        stage: 1, 2 or 3.
        match: Weight of the attentions' relative error beside the labels' loss, in stage 3.
        num_classes: Number of classes K; the command line takes it from the data.
        in_chans: Image channels C; the command line takes it from the data.
        **options: Further arguments of :class:`ClassificationTask`; those about labels and mixing act in stage 3.

    Raises:
        ValueError: If there are no weights of a teacher, the model cannot be linearized, or a number is out of range.
        FloatingPointError: In training, if the loss is no longer finite.

    Attributes:
        teacher: The softmax model; neither trained nor saved.
    """

    task_name: ClassVar[TaskName] = "distill"

    def __init__(
        self,
        name: str = "vit_tiny_patch16_224",
        model_args: dict[str, Any] | None = None,
        *,
        pretrained: bool | Path = False,
        stage: Stage = 1,
        match: float = 1.0,
        num_classes: int,
        in_chans: int,
        **options: Any,
    ) -> None:
        if stage not in get_args(Stage):
            raise ValueError(f"stage must be 1, 2 or 3, got {stage!r}")
        if not match >= 0:
            raise ValueError(f"match must be at least 0, got {match}")
        if pretrained is False:
            raise ValueError("a student learns from the weights of its teacher: give --model.pretrained teacher.safetensors")
        model_args = {"linearize": {}, **(model_args or {}), **_with_head(weights_args(pretrained), num_classes)}
        super().__init__(name, model_args, num_classes=num_classes, in_chans=in_chans, **options)
        teacher = build_teacher(name, model_args, pretrained, num_classes, in_chans)
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple: no part of the state, nor of the optimizer
        self.stage = stage
        self.match = match
        linear = [part for part in self.model.modules() if is_linear(part)]
        if not linear:
            raise ValueError("all attentions stay softmax, so there is nothing to distil: keep fewer blocks")
        if stage == 1:
            self.model.requires_grad_(False)
            for part in linear:
                part.requires_grad_(True)

    @property
    def data(self) -> DistillationData:
        """The trainer's data module."""
        data: Any = super().data
        return cast("DistillationData", data)

    @property
    def teacher(self) -> nn.Module:
        """The softmax model, where the student is."""
        (teacher,) = self._teacher
        like = next(self.model.parameters())
        return teacher.to(like.device, like.dtype)

    def info(self) -> ModelInfo:
        """Return the description to store in the model file: a student is a classifier like any other."""
        return replace(super().info(), task="classify")

    def on_fit_start(self) -> None:
        """Refuse the third stage without labels."""
        if self.stage == 3 and not self.data.labelled:
            raise ValueError(
                "stage 3 learns from labels, and these images have none: give --data.dataset folder, or stop at stage 2"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        images, labels, _ = batch
        if self.stage == 1:
            loss = self._attention_loss(images)
        elif self.stage == 2:
            loss = self._output_loss(images)
        else:
            mixed, targets = self.mixing(images, labels, self.num_classes)
            loss = self._label_loss(mixed, targets)
        return self.report_loss(loss, batch, batch_idx)

    def _attention_loss(self, images: Tensor) -> Tensor:
        """Return the mean relative error of the linear attentions on the teacher's inputs."""
        errors: list[Tensor] = []
        with compared(self.teacher, self.model, lambda name, wanted, came: errors.append(relative_error(wanted, came))):
            self._run(self.teacher, images)
        return torch.stack(errors).mean()

    def _output_loss(self, images: Tensor) -> Tensor:
        """Return the relative error of the final features, and the divergence of the classes."""
        wanted, came = self._run(self.teacher, images), self._run(self.model, images, learn=True)
        divergence = F.kl_div(came.logits.log_softmax(1), wanted.logits.log_softmax(1), reduction="batchmean", log_target=True)
        return relative_error(wanted.features, came.features) + divergence

    def _label_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the labels, and the relative error of the attentions' outputs."""
        with attention_outputs(self.model, self.model) as came:
            logits = self.model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        if not self.match:
            return loss
        with attention_outputs(self.teacher, self.model) as wanted:
            self._run(self.teacher, images)
        return loss + self.match * torch.stack([relative_error(wanted[name], came[name]) for name in came]).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log how far the student does what the teacher does, and, with labels, how well."""
        self._compare(batch, "val")
        if self.data.labelled:
            super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Count the classes, where there are labels."""
        if self.data.labelled:
            super().on_validation_epoch_end()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the same for a test batch."""
        self._compare(batch, "test")
        if self.data.labelled:
            super().test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Count the classes, where there are labels."""
        if self.data.labelled:
            super().on_test_epoch_end()

    def _compare(self, batch: Batch, split: str) -> None:
        images = batch[0]
        wanted, came = self._run(self.teacher, images), self._run(self.final_model, images)
        agreement = (wanted.logits.argmax(1) == came.logits.argmax(1)).float().mean()
        options: Any = {"batch_size": len(images), "sync_dist": True}
        self.log(f"{split}/agreement", agreement, prog_bar=True, **options)
        self.log(f"{split}/feature_error", relative_error(wanted.features, came.features), **options)

    def _run(self, model: Any, images: Tensor, *, learn: bool = False) -> Outputs:
        with torch.set_grad_enabled(learn):
            features = model.forward_features(images)
            return Outputs(features, model.forward_head(features))


def build_teacher(
    name: str, model_args: Mapping[str, Any], pretrained: bool | Path, num_classes: int, in_chans: int
) -> nn.Module:
    """Build the softmax model of a student, with its weights.

    Args:
        name: timm name of the model.
        model_args: Arguments of the student.
        pretrained: A file of weights, or true for the published ones.
        num_classes: Classes of the weights.
        in_chans: Channels of the images.

    Raises:
        ValueError: If the weights are of other classes, or do not fit.
    """
    args = {key: value for key, value in model_args.items() if key not in ("linearize", "checkpoint_path")}
    teacher = build_model(name, {**args, **_with_head(weights_args(pretrained), num_classes)}, num_classes, in_chans)
    published = teacher.pretrained_cfg.get("num_classes")  # type: ignore[operator,union-attr]
    if published != num_classes:
        raise ValueError(
            f"the published weights tell {published} classes apart and the data have {num_classes}: fine-tune the teacher on "
            "them first, by flatten fit, and give its model.safetensors"
        )
    return teacher


def _with_head(weights: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Let timm take the classifier of a file, too: it drops one of other classes than those of its own weights."""
    overlay = weights.get("pretrained_cfg_overlay")
    return weights if overlay is None else {**weights, "pretrained_cfg_overlay": {**overlay, "num_classes": num_classes}}


class Outputs(NamedTuple):
    """What a model makes of images."""

    features: Tensor  # [B, N, C], or maps
    logits: Tensor  # [B, K]


@contextmanager
def attention_outputs(model: nn.Module, student: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the output of every attention of ``model`` that is linear in ``student``, by name, while it runs.

    Args:
        model: Student or teacher.
        student: The student.
    """
    kept: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        return lambda module, args, output: kept.__setitem__(name, first(output))

    names = [name for name, part in student.named_modules() if is_linear(part)]
    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
