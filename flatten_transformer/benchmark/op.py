"""Attention against attention: every contender at every shape, dtype and direction, side by side."""

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
_CACHE_MIB = 256  # input sets together are larger than any cache
_MOST_SETS = 8
# Tensors of B·N·C elements that have to be read or written: q, k, v, out; backward q, k, v, the gradient of out, and three.
_TENSORS_MOVED = {FORWARD: 4, TRAINING: 11}


Stopped = dict[tuple[str, torch.dtype, str], tuple[Shape, str]]  # contender, dtype, direction -> where it failed, and why


def sweep_shapes(tokens: Sequence[int], channels: int, heads: int, tokens_per_batch: int) -> list[Shape]:
    """Return shapes of growing N, as square as N allows, with as many samples as ``tokens_per_batch`` holds, one at least.

    Example:
        >>> [str(shape) for shape in sweep_shapes([49, 8192], 96, 3, 4096)]
        ['83x7x7x96x3', '1x64x128x96x3']
    """
    return [Shape(max(1, tokens_per_batch // n), *_sides(n), channels, heads) for n in sorted(tokens)]


def _sides(tokens: int) -> tuple[int, int]:
    height = next(side for side in range(int(tokens**0.5), 0, -1) if tokens % side == 0)
    return height, tokens // height


def measure(plan: Plan[Shape]) -> Iterator[list[Point]]:
    """Race through all cases; yield the points of each.

    A contender that was too slow or too large stays out of later cases of the same dtype and direction that ask more of it.
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
    judge = Judge(task)
    for contender in contenders(task.inputs[0], case.subject, compiled=plan.compiled):
        earlier = stopped.get((contender.name, case.dtype, case.direction))
        yield Entrant(
            contender.name,
            partial(make_run, contender, task),
            judge if contender.focused else None,
            TOLERANCES[case.dtype] if contender.name.startswith("ours") else None,
            contender.needs_mib(case.subject, case.dtype, case.direction),
            contender.left_out or (_stopped(*earlier, case.subject) if earlier else None),
        )


def _stopped(shape: Shape, reason: str, now: Shape) -> str | None:
    """Return why a contender stays out that failed at ``shape``, or None if it is asked less now."""
    if now.elements() < shape.elements() or now.tokens < shape.tokens:
        return None
    return f"{reason.partition(':')[0]}: stopped at {shape.tokens:,} tokens, where {reason.partition(': ')[2]}"


class Judge:
    """Says how far a run is from the released form on the same inputs, which is computed in float32 at least, and once.

    Args:
        task: The inputs, of which the first set is used.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.wanted: Sequence[Tensor] | None = None

    def __call__(self, run: Run) -> float:
        """Return the relative error of the output, or of all gradients together, whichever is larger."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), run.setting():
            if self.wanted is None:
                self.wanted = self._released()
            return relative_error(run.step(0), self.wanted)

    def _released(self) -> Sequence[Tensor]:
        exact = Inputs(*map(_float32_at_least, self.task.inputs[0]))
        task = self.task._replace(inputs=[exact], upstream=_float32_at_least(self.task.upstream))
        try:
            return make_run(Contender(RELEASED, released), task).step(0)
        except torch.OutOfMemoryError as error:
            raise RuntimeError("not checked: the released form in float32 does not fit into memory") from error


def _float32_at_least(x: Tensor) -> Tensor:
    return x if x.element_size() >= 4 else x.float()


def draw_task(case: Case[Shape], device: torch.device) -> Task:
    """Draw so many sets of inputs that a set has left the caches when its turn comes again; parameters are shared."""
    first = draw_inputs(case.subject, case.dtype, device)
    count = min(_MOST_SETS, max(1, round(_CACHE_MIB * MIB / first.packed.nbytes)))
    packed = [draw_inputs(case.subject, case.dtype, device, seed).packed for seed in range(1, count + 1)]
    sets = [first, *(first._replace(packed=one) for one in packed[:-1])]
    upstream = packed[-1][:, :, : case.subject.channels].contiguous()
    return Task(case.subject, case.direction, sets, upstream)


def floor_us(case: Case[Shape], copy_gb_per_s: float | None) -> float | None:
    """Return the time it takes to move what has to be moved, in microseconds, at the speed of a copy.

    Forward reads q, k and v and writes the output; backward reads q, k, v and the gradient of the output and writes three
    gradients. Nothing is saved in between, and parameters are small.
    """
    if copy_gb_per_s is None:
        return None
    moved_bytes = _TENSORS_MOVED[case.direction] * case.subject.elements() * case.dtype.itemsize
    return moved_bytes / copy_gb_per_s / 1e3
