"""Times of a softmax teacher and its linear student side by side, by image size."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from flatten_transformer.benchmark.growth import crossover
from flatten_transformer.benchmark.model import Images, draw_images, make_run
from flatten_transformer.benchmark.race import FORWARD, TOO_LARGE, TOO_SLOW, Case, Entrant, Limits, Plan, make_cases, race_cases
from flatten_transformer.benchmark.report import Point
from flatten_transformer.benchmark.timing import Run, Spread
from flatten_transformer.utils.progress import track

TEACHER, STUDENT = "teacher", "student"
SIZES_PX = (224, 384, 512, 768, 1024)
LIMITS = Limits(budget_s=5.0, call_s=10.0)
Model = TypeVar("Model", bound=nn.Module)


def measure_times(
    teacher: nn.Module,
    student: nn.Module,
    sizes_px: Sequence[int] = SIZES_PX,
    *,
    name: str = "model",
    batch: int = 1,
    limits: Limits = LIMITS,
) -> list[Point]:
    """Time inference of teacher and student in alternating rounds, at each size; a time is that of the whole batch.

    Args:
        teacher: The softmax model, which stays as it is.
        student: Its linear form, on the same device.
        sizes_px: Sides of the images.
        name: Name of the model in reports.
        batch: Images per batch.
        limits: Limits at each size. What was too slow or too large at one size is left out at larger ones.

    Returns:
        A point for each model and size; without a time, it says why.

    Example:
        >>> import timm
        >>> from flatten_transformer.linearize import linearize
        >>> teacher = timm.create_model("vit_tiny_patch16_224", depth=1)
        >>> points = measure_times(teacher, linearize(teacher), [8, 64], limits=Limits(budget_s=0))
        >>> [(point.contender, point.shape["image_px"], point.reason is None) for point in points]
        [('teacher', 8, False), ('student', 8, False), ('teacher', 64, True), ('student', 64, True)]
    """
    like, models = next(teacher.parameters()), {TEACHER: teacher, STUDENT: student}
    cases = make_cases([Images(name, batch, size_px) for size_px in sorted(set(sizes_px))], [like.dtype], [FORWARD])
    points: list[Point] = []

    def enter(case: Case[Images]) -> Iterator[Entrant]:
        for contender, model in models.items():
            build = partial(_build_run, model, case, like.device)
            yield Entrant(contender, build, left_out=_stopped(points, contender))

    races = race_cases(Plan(cases, like.device, limits), enter, [TEACHER])
    with track(cases) as at_hand:
        for _ in at_hand:
            points += next(races)
    return points


def _stopped(points: Sequence[Point], contender: str) -> str | None:
    """Return why a contender is not started at a size above those of ``points``."""
    for point in points:
        if point.contender == contender and point.reason and point.reason.startswith((TOO_SLOW, TOO_LARGE)):
            return f"{point.reason}, already at {point.shape['image_px']:,} px"
    return None


def _build_run(model: nn.Module, case: Case[Images], device: torch.device) -> Run:
    """Return the timed call; what a model says against the size becomes the reason, a RuntimeError."""
    size_px = case.subject.image_px
    try:
        sized = at_size(model, size_px)
    except Exception as error:  # timm has no one class for it
        raise RuntimeError(f"no such size: {error}") from error

    def call(images: Tensor) -> Tensor:
        try:
            scores: Tensor = sized(images)
        except (AssertionError, ValueError) as error:
            raise RuntimeError(f"no such size: {error}") from error
        return scores

    return make_run(sized, call, draw_images(case.subject, case.dtype, device, _channels(model)), FORWARD)


def at_size(model: Model, size_px: int) -> Model:
    """Return a copy of a model for images of one size, in evaluation mode; one without timm's ``set_input_size`` is as it was.

    Example:
        >>> import timm
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=1)
        >>> at_size(model, 96)(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 1000])
    """
    model = copy.deepcopy(model).eval()
    resize = getattr(model, "set_input_size", None)
    if resize is not None:
        resize(img_size=(size_px, size_px))
    return model


def _channels(model: nn.Module) -> int:
    """Return the channels of the images, which the first convolution takes."""
    return next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3)


@dataclass(frozen=True)
class Crossing:
    """Where the student is faster.

    Args:
        faster_from_px: Smallest measured size from which on the student is faster; None: it is not at the largest.
        crossing_px: Size at which both take as long, interpolated, to tens; None: there is none between the measured ones.
        ratios: Student's time / teacher's by size, of the sizes where both were timed.
    """

    faster_from_px: int | None
    crossing_px: int | None
    ratios: dict[int, Spread]

    def __str__(self) -> str:
        if not self.ratios:
            return "At no size were teacher and student timed together."
        (smallest, first), (largest, last) = (list(self.ratios.items())[place] for place in (0, -1))
        at_largest = f"at {largest:,} px it takes {last.median:.2f} times the teacher's time"
        if self.faster_from_px is None:
            return f"The student is not faster: {at_largest}, the largest size at which both were timed."
        if self.faster_from_px == smallest:
            return f"The student is faster at every size timed, from {smallest:,} px on; {at_largest}."
        at_smallest = f"at {smallest:,} px {first.median:.2f} times"
        return f"The student is faster from about {self.crossing_px or self.faster_from_px:,} px on: {at_largest}, {at_smallest}."


def crossing(points: Sequence[Point]) -> Crossing:
    """Return where the student is faster.

    Args:
        points: From :func:`measure_times`.

    Example:
        >>> half, twice = Spread(0.5, 0.5, 0.5), Spread(2.0, 2.0, 2.0)
        >>> def timed(size_px, ratio):
        ...     return Point("vit", STUDENT, {"batch": 1, "image_px": size_px}, "float32", FORWARD, time_ratios={TEACHER: ratio})
        >>> print(crossing([timed(256, twice), timed(1024, half)]))
        The student is faster from about 510 px on: at 1,024 px it takes 0.50 times the teacher's time, at 256 px 2.00 times.
    """
    ratios = {
        point.shape["image_px"]: point.time_ratios[TEACHER]
        for point in points
        if point.contender == STUDENT and TEACHER in point.time_ratios
    }
    faster_from_px = None
    for size_px, ratio in reversed(ratios.items()):
        if ratio.median >= 1:
            break
        faster_from_px = size_px
    medians = [(size_px, ratio.median) for size_px, ratio in ratios.items()]
    turn = crossover(medians, [(size_px, 1.0) for size_px in ratios])
    return Crossing(faster_from_px, None if turn is None or faster_from_px is None else int(round(turn, -1)), ratios)
