"""How near linear students are to their softmax teacher, on images."""

# B images in a batch.

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flatten_transformer.linearize.errors import compared, relative_error
from flatten_transformer.utils.progress import track


class Batches(Protocol):
    """Batches of images ``[B, C, height, width]`` and labels ``[B]``, or None without labels; a data loader is one."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Iterate."""

    def __len__(self) -> int:
        """Return the number of batches."""


@dataclass(frozen=True)
class Judgement:
    """How near a student is to its teacher; errors are ‖student − teacher‖² / ‖teacher‖², mean over the images.

    Args:
        images: Number of images.
        blocks: Error of each linear attention on the teacher's own inputs, by its name; none if they were not judged.
        features: Error of the final features, ``forward_features``; None if the models do not say them.
        agreement: Share of the images whose class is the teacher's; None without a classifier.
        accuracy: Share of the labelled images whose class is right; None without labels.
        teacher_accuracy: That of the teacher.
    """

    images: int
    blocks: dict[str, float]
    features: float | None
    agreement: float | None
    accuracy: float | None
    teacher_accuracy: float | None


@torch.no_grad()
def judge(
    teacher: nn.Module, students: Mapping[str, nn.Module], batches: Batches, *, blocks: bool = True
) -> dict[str, Judgement]:
    """Judge students of one teacher, all in one pass over the images.

    Args:
        teacher: The softmax model; images go to its device and dtype. All models are run in evaluation mode.
        students: Its linear forms by name, on the same device.
        batches: Images, and labels or None.
        blocks: Judge each attention, too, which takes about half the time.

    Raises:
        ValueError: If there are no images.

    Example:
        >>> import timm
        >>> from flatten_transformer.linearize import linearize
        >>> teacher = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10)
        >>> students = {"focused": linearize(teacher), "softmax": linearize(teacher, keep=2)}
        >>> judged = judge(teacher, students, [(torch.randn(4, 3, 224, 224), None)])
        >>> list(judged["focused"].blocks)
        ['blocks.0.attn', 'blocks.1.attn']
        >>> judged["softmax"]
        Judgement(images=4, blocks={}, features=0.0, agreement=1.0, accuracy=None, teacher_accuracy=None)
    """
    parts, whole = {name: _Ratios() for name in students}, {name: _Ratios() for name in students}
    like, images_seen = next(teacher.parameters()), 0
    with _evaluating(teacher, *students.values()), track(range(len(batches)), _describe, quick=True) as numbers:
        for _, (images, labels) in zip(numbers, batches, strict=False):  # fetched under the bar
            images_seen += len(images)
            images = images.to(like.device, like.dtype)
            labels = None if labels is None else labels.to(like.device)
            with ExitStack() as stack:
                for name, student in students.items() if blocks else ():
                    stack.enter_context(compared(teacher, student, parts[name].add_error))
                wanted = _outputs(teacher, images)
            for name, student in students.items():
                _compare(whole[name], wanted, _outputs(student, images), labels)
    if not images_seen:
        raise ValueError("no image to judge students on: give one batch or more")
    return {name: Judgement(images_seen, parts[name].all(), *map(whole[name].get, _WHOLE)) for name in students}


_WHOLE = ("features", "agreement", "accuracy", "teacher_accuracy")
_Outputs = tuple[Tensor | None, Tensor | None]  # features; class of each image, [B]


def _outputs(model: Any, images: Tensor) -> _Outputs:
    """Run a model once."""
    features: Tensor | None = None
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        features = model.forward_features(images)
        scores = model.forward_head(features)
    else:
        scores = model(images)
    scores = getattr(scores, "logits", scores)  # of a model of transformers
    has_classes = isinstance(scores, Tensor) and scores.ndim == 2 and getattr(model, "num_classes", None) != 0
    return features, scores.argmax(1) if has_classes else None


def _compare(ratios: _Ratios, wanted: _Outputs, came: _Outputs, labels: Tensor | None) -> None:
    (features, classes), (own_features, own_classes) = wanted, came
    if features is not None and own_features is not None:
        ratios.add_error("features", features, own_features)
    if classes is None or own_classes is None:
        return
    ratios.add_share("agreement", own_classes == classes)
    if labels is not None:
        ratios.add_share("accuracy", own_classes == labels)
        ratios.add_share("teacher_accuracy", classes == labels)


class _Ratios:
    """Ratios of sums over batches, by name; they stay on the device until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add_error(self, name: str, wanted: Tensor, came: Tensor) -> None:
        images = len(wanted)
        self._add(name, images * relative_error(wanted.double(), came.double()), wanted.new_tensor(images, dtype=torch.float64))

    def add_share(self, name: str, hits: Tensor) -> None:
        self._add(name, hits.sum().double(), torch.full((), float(hits.numel()), dtype=torch.float64, device=hits.device))

    def _add(self, name: str, part: Tensor, whole: Tensor) -> None:
        pair = torch.stack([part, whole])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def get(self, name: str) -> float | None:
        return self.all().get(name)

    def all(self) -> dict[str, float]:
        tiny = torch.finfo(torch.float64).tiny
        return {name: float(part / whole.clamp_min(tiny)) for name, (part, whole) in self.sums.items()}


def _describe(number: int) -> str:
    return "student and teacher on the same images"


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """Run models in evaluation mode, and leave each of their parts in the mode it was in."""
    modes = [(part, part.training) for model in models for part in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
