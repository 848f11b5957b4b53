"""Times of several functions side by side: a round calls each once, every round in another order.

What slows a machine down for a while, slows all of them down, and their ratios, taken a round at a time, stay.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

Round = dict[str, float]  # microseconds that each took


class Run(NamedTuple):
    """What is timed: ``step(turn)``, within ``setting()``, which is entered and left outside the time."""

    step: Callable[[int], Sequence[Tensor]]  # the turn says which input set: what the last call read is out of the caches
    setting: Callable[[], AbstractContextManager[object]] = nullcontext


_LARGEST_HZ = 2e9  # of a GPU's clock, in which it is told how long to wait

Stopwatch = Callable[[Sequence[tuple[Run, int]]], list[float]]  # runs with their turns -> microseconds each


class Spread(NamedTuple):
    """Median and quartiles, in the unit of what they are of."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value or more.

        Example:
            >>> Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
            Spread(q1=2.0, median=3.0, q3=4.0)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def wall_clock(calls: Sequence[tuple[Run, int]]) -> list[float]:
    """Time calls one after the other by the computer's clock; microseconds. For the CPU, where a call ends when it is done.

    An untimed call of the same run goes before each: a run that has given much memory back to the system can otherwise
    slow down the next one, which has to ask for it again.
    """
    times = []
    for run, turn in calls:
        with run.setting():
            run.step(turn)
            start_ns = time.perf_counter_ns()
            run.step(turn + 1)
            times.append((time.perf_counter_ns() - start_ns) / 1e3)
    return times


class CudaEvents:
    """Times calls by events on the GPU; microseconds.

    The calls of a round queue up as in a model, so the computer's own time counts only where the GPU waits for it.

    Args:
        ahead: Let the GPU wait at the start of a round until the whole round is queued, so that no call waits for Python:
            the GPU's time alone.
    """

    def __init__(self, *, ahead: bool = False) -> None:
        self.ahead = ahead
        self.queued_s = 0.0  # what it took to queue the last round

    def __call__(self, calls: Sequence[tuple[Run, int]]) -> list[float]:
        """Time one round."""
        if self.ahead:
            torch.cuda._sleep(int(1.5 * self.queued_s * _LARGEST_HZ))
        events = []
        start_s = time.perf_counter()
        for run, turn in calls:
            with run.setting():
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                run.step(turn)
                end.record()
            events.append((start, end))
        self.queued_s = time.perf_counter() - start_s
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events]


def stopwatch_for(device: torch.device, *, ahead: bool = False) -> Stopwatch:
    """Return what measures time on this device; for ``ahead`` see :class:`CudaEvents`."""
    return CudaEvents(ahead=ahead) if device.type == "cuda" else wall_clock


def interleave(
    runs: Mapping[str, Run],
    stopwatch: Stopwatch,
    *,
    budget_s: float,
    min_rounds: int = 3,
    max_rounds: int = 200,
    warmup_rounds: int = 1,
    now_s: Callable[[], float] = time.perf_counter,
) -> list[Round]:
    """Time all runs in rounds until the budget is spent.

    Args:
        runs: By name.
        stopwatch: Times the calls of one round.
        budget_s: For all of them together, in seconds, the warm-up included.
        min_rounds: So many even if that exceeds the budget.
        max_rounds: No more than these.
        warmup_rounds: First rounds that are dropped.
        now_s: The clock of the budget, in seconds.

    Returns:
        The time of each run in each round, in microseconds.

    Example:
        >>> rounds = interleave({"nothing": Run(lambda turn: ())}, wall_clock, budget_s=60, max_rounds=5)
        >>> len(rounds), list(rounds[0])
        (5, ['nothing'])
    """
    rounds: list[Round] = []
    names = list(runs)
    start_s = now_s()
    with _no_garbage_collection():
        for number in range(warmup_rounds + max_rounds if names else 0):
            order = rotated(names, number)
            times_us = stopwatch([(runs[name], number * len(names) + place) for place, name in enumerate(order)])
            if number >= warmup_rounds:
                rounds.append(dict(zip(order, times_us, strict=True)))
            if len(rounds) >= min_rounds and now_s() - start_s >= budget_s:
                break
    return rounds


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: each is first in turn, and every second turn around goes backwards.

    So the neighbour that leaves its data in the caches is not always the same.

    Example:
        >>> [rotated("abc", number) for number in (0, 1, 3)]
        [['a', 'b', 'c'], ['b', 'c', 'a'], ['c', 'b', 'a']]
    """
    turned, shift = divmod(number, len(names))
    order = list(names) if turned % 2 == 0 else list(names)[::-1]
    return order[shift:] + order[:shift]


def time_ratios(rounds: Sequence[Round], name: str, baseline: str) -> Spread:
    """Return the time of one over that of another, taken a round at a time: below 1 is faster than the baseline.

    Example:
        >>> time_ratios([{"a": 1.0, "b": 2.0}, {"a": 4.0, "b": 4.0}, {"a": 3.0, "b": 4.0}], "a", "b").median
        0.75
    """
    return Spread.of([times_us[name] / times_us[baseline] for times_us in rounds])


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
