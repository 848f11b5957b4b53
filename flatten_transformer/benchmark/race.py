"""Races: contenders are built, checked, timed side by side, and their peak memory is measured."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from flatten_transformer.benchmark.memory import free_mib, peak_mib
from flatten_transformer.benchmark.report import RED, Point, race_title
from flatten_transformer.benchmark.timing import Round, Run, Spread, interleave, stopwatch_for, time_ratios

FORWARD, TRAINING = "forward", "forward+backward"
DIRECTIONS = (FORWARD, TRAINING)


class Limits(NamedTuple):
    """Limits of a race."""

    budget_s: float = 5.0  # timing of all contenders at one point, start-up excluded
    call_s: float = 5.0  # per call; slower contenders are left out
    memory_mib: float | None = None  # estimated need of one call; None: see _memory_limit_mib
    max_rounds: int = 200
    deadline_s: float = float("inf")  # by time.monotonic(); later contenders are left out


DEFAULT_LIMITS = Limits()


class Subject(Protocol):
    """Subject of a race: attention of some shape, or a model on images of some size."""

    @property
    def name(self) -> str:
        """Return its name in reports."""

    def sizes(self) -> dict[str, int]:
        """Return its sizes, by their names in reports."""


S = TypeVar("S", bound=Subject)


@dataclass(frozen=True)
class Case(Generic[S]):
    """One race."""

    subject: S
    dtype: torch.dtype
    direction: str

    def __str__(self) -> str:
        return race_title(_blank(self, ""))


@dataclass(frozen=True)
class Plan(Generic[S]):
    """Plan of a benchmark."""

    cases: Sequence[Case[S]]
    device: torch.device
    limits: Limits = DEFAULT_LIMITS
    contenders: Sequence[str] | None = None  # by name; None: all
    compiled: bool = False  # include torch.compile
    graphed: bool = False  # include models as CUDA graphs, free of Python's overhead
    copy_gb_per_s: float | None = None  # for the floor of attention
    done: Sequence[Sequence[Point]] = ()  # points of the first cases, from an earlier start

    def after(self, done: Sequence[Sequence[Point]]) -> Plan[S]:
        """Return the plan with some of its first cases done."""
        return replace(self, done=done)


def make_cases(subjects: Sequence[S], dtypes: Sequence[torch.dtype], directions: Sequence[str]) -> list[Case[S]]:
    """Return every combination, subjects innermost, so that a sweep goes from few tokens to many."""
    return [Case(subject, dtype, direction) for dtype, direction, subject in product(dtypes, directions, subjects)]


@dataclass(frozen=True)
class Entrant:
    """A contender before the race; a RuntimeError from building, checking or running it is its reason."""

    name: str
    build: Callable[[], Run]
    error: Callable[[Run], float] | None = None  # relative, against the released form
    tolerance: float | None = None  # of that error; None: recorded, not checked
    needs_mib: float = 0.0  # estimated memory of one call
    left_out: str | None = None  # reason not to start it


def race_cases(
    plan: Plan[S], enter: Callable[[Case[S]], Iterable[Entrant]], baselines: Sequence[str], *, ahead: bool = False
) -> Iterator[list[Point]]:
    """Race through all cases but those that are done; yield the points of each.

    Args:
        plan: Cases and contenders.
        enter: Returns all possible entrants of a case.
        baselines: See :func:`race`.
        ahead: See :func:`race`.
    """
    yield from map(list, plan.done)
    for case in plan.cases[len(plan.done) :]:
        torch.compiler.reset()  # the recompile limit counts over all cases
        entrants = [entrant for entrant in enter(case) if plan.contenders is None or entrant.name in plan.contenders]
        points = race(entrants, partial(_blank, case), baselines, plan.device, plan.limits, ahead=ahead)
        del entrants  # free this case's inputs before the next are drawn
        yield points


def _blank(case: Case[S], contender: str) -> Point:
    return Point(case.subject.name, contender, case.subject.sizes(), str(case.dtype).removeprefix("torch."), case.direction)


def race(
    entrants: Sequence[Entrant],
    blank: Callable[[str], Point],
    baselines: Sequence[str],
    device: torch.device,
    limits: Limits,
    *,
    ahead: bool = False,
) -> list[Point]:
    """Race all entrants that can run, and return a point for each, in order.

    Args:
        entrants: Contenders.
        blank: Maps an entrant's name to its point without results.
        baselines: Entrants that time ratios are taken against, by name.
        device: Device they run on.
        limits: Limits of the race.
        ahead: On a GPU, time the GPU's work alone: see :class:`CudaEvents`.
    """
    _release_memory(device)
    runs: dict[str, Run] = {}
    points = []
    for entrant in entrants:
        trial = _try(entrant, device, limits)
        if trial.run is not None:
            runs[entrant.name] = trial.run
        points.append(replace(blank(entrant.name), relative_error=trial.error, reason=trial.reason))
    rounds = interleave(runs, stopwatch_for(device, ahead=ahead), budget_s=limits.budget_s, max_rounds=limits.max_rounds)
    present = [name for name in baselines if name in runs]
    return [
        _finished(point, runs[point.contender], rounds, present, device) if point.reason is None else point for point in points
    ]


class _Trial(NamedTuple):
    run: Run | None = None
    error: float | None = None
    reason: str | None = None


def _try(entrant: Entrant, device: torch.device, limits: Limits) -> _Trial:
    """Build an entrant, check it, and call it once more to see how long it takes."""
    reason = entrant.left_out or _exceeds_memory(entrant, device, limits)
    if reason is None and time.monotonic() > limits.deadline_s:
        reason = "left out: the time for the whole benchmark was over"
    if reason is not None:
        return _Trial(reason=reason)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return _check(entrant, device, limits)
        except RuntimeError as failure:
            reason = _reason(failure, [str(warning.message) for warning in caught])
    if reason.startswith(TOO_LARGE):
        _release_memory(device)
    return _Trial(reason=reason)


def _check(entrant: Entrant, device: torch.device, limits: Limits) -> _Trial:
    run = entrant.build()
    error = _error(entrant, run)
    if error is not None and entrant.tolerance is not None and not error <= entrant.tolerance:
        return _Trial(
            error=error, reason=f"{RED}: relative error {error:.1e} against the released form, {entrant.tolerance:g} allowed"
        )
    with run.setting():
        run.step(0)  # one-off work: compiling, tuning
        _synchronize(device)
        start_s = time.perf_counter()
        run.step(1)
        _synchronize(device)
        elapsed_s = time.perf_counter() - start_s
    if elapsed_s > limits.call_s:
        return _Trial(error=error, reason=f"{TOO_SLOW}: one call took {elapsed_s:.1f} s, the limit is {limits.call_s:g} s")
    return _Trial(run, error)


def _error(entrant: Entrant, run: Run) -> float | None:
    """Return the error against the released form; an entrant without a tolerance need not fit into memory beside it."""
    if entrant.error is None:
        return None
    try:
        return entrant.error(run)
    except RuntimeError:
        if entrant.tolerance is not None:
            raise
        return None


TOO_SLOW = "too slow"  # reason prefixes of contenders to skip at larger sizes
TOO_LARGE = "too large"


def _exceeds_memory(entrant: Entrant, device: torch.device, limits: Limits) -> str | None:
    limit_mib = _memory_limit_mib(device) if limits.memory_mib is None else limits.memory_mib
    if entrant.needs_mib <= limit_mib:
        return None
    return f"{TOO_LARGE}: one call needs about {entrant.needs_mib:,.0f} MiB, the limit is {limit_mib:,.0f} MiB"


def _memory_limit_mib(device: torch.device) -> float:
    """Return 0.6 of the free memory on the CPU, where exhaustion kills the process; unlimited on a GPU, which raises."""
    return float("inf") if device.type == "cuda" else 0.6 * free_mib(device)


def _reason(failure: RuntimeError, warned: Sequence[str]) -> str:
    """Return one line; if PyTorch finds no kernel, its warnings say more than its error."""
    message = str(failure).strip().partition("\n")[0]
    if isinstance(failure, torch.OutOfMemoryError) or "not enough memory" in message:
        return f"{TOO_LARGE}: out of memory"
    if message.startswith(("No viable backend", "No available kernel")):
        causes = [text.partition(" (Triggered")[0] for text in warned if "kernel not used because" not in text]
        message = " ".join(["PyTorch has no such kernel for this device, dtype and shape", *causes[:1]])
    return " ".join(message.split())[:300]


def _finished(point: Point, run: Run, rounds: Sequence[Round], baselines: Sequence[str], device: torch.device) -> Point:
    q1_us, median_us, q3_us = Spread.of([times_us[point.contender] for times_us in rounds])
    with run.setting():
        peak = peak_mib(lambda: run.step(0), device)
    return replace(
        point,
        median_us=median_us,
        q1_us=q1_us,
        q3_us=q3_us,
        rounds=len(rounds),
        peak_mib=peak,
        time_ratios={name: time_ratios(rounds, point.contender, name) for name in baselines},
    )


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return ‖actual - expected‖ / ‖expected‖, of the output (the first tensor) or of all gradients, whichever is larger.

    Example:
        >>> relative_error([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 5.0])])
        0.17149858514250882
    """
    parts = [(actual[:1], expected[:1])] + [(actual[1:], expected[1:])] * (len(expected) > 1)
    return max(_distance(*part) for part in parts)


def _distance(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = [(a.detach(), b.detach()) for a, b in zip(actual, expected, strict=True)]
    differences = torch.stack([(a - b).double().norm() for a, b in pairs])  # a - b in the wider dtype of the two
    error = float(differences.norm() / torch.stack([b.double().norm() for _, b in pairs]).norm())
    return error if error == error else float("inf")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
