"""Races between attentions: every contender at every shape, dtype and direction."""

# B batch, N tokens, C = H heads × D channels per head.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from flatten_transformer.benchmark.contenders import Contender, Inputs, Shape, Task, contenders, draw_inputs, make_run, released
from flatten_transformer.benchmark.memory import MIB
from flatten_transformer.benchmark.race import (
    FORWARD,
    TOO_LARGE,
    TOO_SLOW,
    TRAINING,
    Case,
    Entrant,
    Plan,
    race_cases,
    relative_error,
)
from flatten_transformer.benchmark.report import RELEASED, Point
from flatten_transformer.benchmark.timing import Run

SHAPES = (Shape(16, 14, 14, 192, 3), Shape(8, 28, 28, 192, 6), Shape(4, 56, 56, 96, 3), Shape(1, 112, 112, 96, 3))
TOKENS = (49, 196, 784, 3136, 4096, 16384, 65536, 262144, 1048576)
# Largest ‖ours - released‖ / ‖released‖ at which a speed is reported; the released form is computed in float32 at least.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
_CACHE_MIB = 256  # total size of the input sets, larger than any cache
_MAX_SETS = 8
# Tensors of B·N·C elements to read or write: q, k, v, out; backward q, k, v, the gradient of out, and three gradients.
_TENSORS_MOVED = {FORWARD: 4, TRAINING: 11}


Stopped = dict[tuple[str, torch.dtype, str], tuple[Shape, str]]  # contender, dtype, direction -> where it stopped, and why


def sweep_shapes(tokens: Sequence[int], channels: int, heads: int, tokens_per_batch: int) -> list[Shape]:
    """Return shapes of growing N, as square as possible, with ``tokens_per_batch // N`` samples, at least one.

    Example:
        >>> [str(shape) for shape in sweep_shapes([49, 8192], 96, 3, 4096)]
        ['83x7x7x96x3', '1x64x128x96x3']
    """
    return [Shape(max(1, tokens_per_batch // n), *_sides(n), channels, heads) for n in sorted(tokens)]


def _sides(tokens: int) -> tuple[int, int]:
    height = next(side for side in range(int(tokens**0.5), 0, -1) if tokens % side == 0)
    return height, tokens // height


def measure(plan: Plan[Shape]) -> Iterator[list[Point]]:
    """Race through all cases but those that are done; yield the points of each.

    A contender that was too slow or too large skips larger cases of the same dtype and direction.
    """
    stopped: Stopped = {}
    races = race_cases(plan, partial(_entrants, plan, stopped), [RELEASED], ahead=True)
    for case, points in zip(plan.cases, races, strict=True):
        for point in points:
            if point.reason and point.reason.startswith((TOO_SLOW, TOO_LARGE)) and "stopped" not in point.reason:
                stopped[point.contender, case.dtype, case.direction] = (case.subject, point.reason)
            elif point.median_us is not None:
                stopped.pop((point.contender, case.dtype, case.direction), None)
        yield [replace(point, floor_us=floor_us(case, plan.copy_gb_per_s)) for point in points]


def _entrants(plan: Plan[Shape], stopped: Stopped, case: Case[Shape]) -> Iterator[Entrant]:
    task = draw_task(case, plan.device)
    error = ReleasedError(task)
    for contender in contenders(task.inputs[0], case.subject, compiled=plan.compiled):
        earlier = stopped.get((contender.name, case.dtype, case.direction))
        yield Entrant(
            contender.name,
            partial(make_run, contender, task),
            error if contender.focused else None,
            TOLERANCES[case.dtype] if contender.name.startswith("ours") else None,
            contender.needs_mib(case.subject, case.dtype, case.direction),
            contender.left_out or (_stopped(*earlier, case.subject) if earlier else None),
        )


def _stopped(shape: Shape, reason: str, now: Shape) -> str | None:
    """Return the reason to skip a contender that stopped at ``shape``, or None if the new shape is smaller."""
    if now.elements() < shape.elements() or now.tokens < shape.tokens:
        return None
    return f"{reason.partition(':')[0]}: stopped at {shape.tokens:,} tokens, where {reason.partition(': ')[2]}"


class ReleasedError:
    """Compares runs with the released form on the same inputs, computed once, in float32 or wider.

    Args:
        task: Its first set of inputs is used.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.expected: Sequence[Tensor] | None = None

    def __call__(self, run: Run) -> float:
        """Return the larger of the relative errors of the output and of all gradients together."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), run.setting():
            if self.expected is None:
                self.expected = self._released()
            return relative_error(run.step(0), self.expected)

    def _released(self) -> Sequence[Tensor]:
        inputs = Inputs(*map(_at_least_float32, self.task.inputs[0]))
        task = self.task._replace(inputs=[inputs], upstream=_at_least_float32(self.task.upstream))
        try:
            return make_run(Contender(RELEASED, released), task).step(0)
        except torch.OutOfMemoryError as error:
            raise RuntimeError("not checked: the released form in float32 does not fit into memory") from error


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.element_size() >= 4 else x.float()


def draw_task(case: Case[Shape], device: torch.device) -> Task:
    """Draw enough sets of inputs for each to leave the caches between uses; parameters are shared."""
    first = draw_inputs(case.subject, case.dtype, device)
    count = min(_MAX_SETS, max(1, round(_CACHE_MIB * MIB / first.packed.nbytes)))
    packed = [draw_inputs(case.subject, case.dtype, device, seed).packed for seed in range(1, count + 1)]
    sets = [first, *(first._replace(packed=one) for one in packed[:-1])]
    upstream = packed[-1][:, :, : case.subject.channels].contiguous()
    return Task(case.subject, case.direction, sets, upstream)


def floor_us(case: Case[Shape], copy_gb_per_s: float | None) -> float | None:
    """Return the time to move the required bytes at copy bandwidth, in microseconds.

    Forward reads q, k and v and writes the output; backward reads q, k, v and the output gradient and writes three
    gradients. Nothing is saved in between, and parameters are negligible.
    """
    if copy_gb_per_s is None:
        return None
    moved_bytes = _TENSORS_MOVED[case.direction] * case.subject.elements() * case.dtype.itemsize
    return moved_bytes / copy_gb_per_s / 1e3
