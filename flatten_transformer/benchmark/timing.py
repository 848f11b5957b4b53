"""Interleaved timing: each round calls every function once, in a new order.

Whatever slows the machine for a while slows all of them, so ratios within a round are stable.
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

Round = dict[str, float]  # microseconds by name


class Run(NamedTuple):
    """A timed call: ``step(turn)`` within ``setting()``, whose entry and exit are not timed."""

    step: Callable[[int], Sequence[Tensor]]  # turn selects the input set, so that caches are cold
    setting: Callable[[], AbstractContextManager[object]] = nullcontext


_MAX_CLOCK_HZ = 2e9  # of a GPU, to convert seconds to cycles

Stopwatch = Callable[[Sequence[tuple[Run, int]]], list[float]]  # (run, turn) pairs -> microseconds each


class Spread(NamedTuple):
    """Median and quartiles, in the unit of the values."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one or more values.

        Example:
            >>> Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
            Spread(q1=2.0, median=3.0, q3=4.0)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def wall_clock(calls: Sequence[tuple[Run, int]]) -> list[float]:
    """Time calls one after the other by the wall clock, in microseconds; for the CPU, where calls are synchronous.

    An untimed call of the same run goes first: otherwise a run that has returned memory to the system slows down the next
    one, which must allocate it again.
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
    """Times calls by CUDA events, in microseconds.

    Calls of a round queue up as in a model, so host time counts only where the GPU waits for it.

    Args:
        ahead: Hold the GPU at the start of a round until the whole round is queued: GPU time alone.
    """

    def __init__(self, *, ahead: bool = False) -> None:
        self.ahead = ahead
        self.queued_s = 0.0  # time to queue the last round

    def __call__(self, calls: Sequence[tuple[Run, int]]) -> list[float]:
        """Time one round."""
        if self.ahead:
            torch.cuda._sleep(int(1.5 * self.queued_s * _MAX_CLOCK_HZ))
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
    """Return the stopwatch of a device; for ``ahead`` see :class:`CudaEvents`."""
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
        runs: Runs by name.
        stopwatch: Times the calls of one round.
        budget_s: Seconds for all runs together, warm-up included.
        min_rounds: Minimum, even over budget.
        max_rounds: Maximum.
        warmup_rounds: Initial rounds to drop.
        now_s: Clock of the budget, in seconds.

    Returns:
        Microseconds of each run in each round.

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
    """Return the order of a round: each goes first in turn, and every second cycle runs backwards.

    So no run always follows the same neighbour, whose data are in the caches.

    Example:
        >>> [rotated("abc", number) for number in (0, 1, 3)]
        [['a', 'b', 'c'], ['b', 'c', 'a'], ['c', 'b', 'a']]
    """
    cycle, shift = divmod(number, len(names))
    order = list(names) if cycle % 2 == 0 else list(names)[::-1]
    return order[shift:] + order[:shift]


def time_ratios(rounds: Sequence[Round], name: str, baseline: str) -> Spread:
    """Return the spread over rounds of own time / baseline's; below 1 is faster.

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
