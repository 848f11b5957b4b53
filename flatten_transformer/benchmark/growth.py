"""Statistics over many points: exponents of growth, means over shapes, and where softmax stops winning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from flatten_transformer.benchmark.report import ATTENTION, Growth, Mean, Point

FROM_TOKENS = 3136
Series = tuple[str, str, str]  # contender, dtype, direction


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the e of cost ≈ a·sizeᵉ: the slope of the least-squares line through the logarithms.

    Example:
        >>> round(exponent([10, 100, 1000], [3, 300, 30000]), 6)
        2.0
    """
    return statistics.linear_regression(*([math.log(value) for value in values] for values in (sizes, costs))).slope


def growth(points: Iterable[Point], from_tokens: int = FROM_TOKENS) -> tuple[Growth, ...]:
    """Fit how time and memory of one sample grow with its tokens, for each contender of a sweep.

    Args:
        points: Points of attention; those of two sizes at least from ``from_tokens`` on make an exponent.
        from_tokens: Where the fit begins: below it a call's fixed costs show.
    """
    found = []
    for (contender, dtype, direction), series in _series(points).items():
        timed = [point for point in series if point.shape["tokens"] >= from_tokens]
        tokens = [point.shape["tokens"] for point in timed]
        if len(set(tokens)) < 2 or len({(p.shape["channels"], p.shape["heads"]) for p in timed}) > 1:
            continue
        memories = [point.per_sample(point.peak_mib) or 0.0 for point in timed]
        found.append(
            Growth(
                contender,
                dtype,
                direction,
                min(tokens),
                max(tokens),
                exponent(tokens, [point.per_sample(point.median_us) or 0.0 for point in timed]),
                exponent(tokens, memories) if all(memories) else None,
            )
        )
    return tuple(found)


def means(points: Iterable[Point]) -> tuple[Mean, ...]:
    """Return the geometric mean over all shapes of how many times as fast as the released form each contender is."""
    found = []
    for (contender, dtype, direction), series in _series(points).items():
        speedups = [speedup for point in series if (speedup := point.speedup()) is not None]
        if speedups:
            found.append(Mean(contender, dtype, direction, len(speedups), statistics.geometric_mean(speedups)))
    return tuple(found)


def crossover(ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]]) -> float | None:
    """Return the number of tokens from which on ours costs less, interpolated between sizes on log axes.

    Args:
        ours: (tokens, cost) of rising tokens.
        theirs: (tokens, cost) of the other contender.

    Returns:
        None if no size is the turn: ours costs less at every size both have, or at the largest of them more.

    Example:
        >>> round(crossover([(100, 2.0), (10000, 2.0)], [(100, 1.0), (10000, 4.0)]))
        1000
    """
    other = dict(theirs)
    gaps = [(math.log(tokens), math.log(cost / other[tokens])) for tokens, cost in ours if tokens in other]
    turns = [(low, high) for low, high in pairwise(gaps) if low[1] > 0 >= high[1]]
    if not turns or gaps[-1][1] > 0:
        return None
    (x, y), (next_x, next_y) = turns[-1]
    return math.exp(x + (next_x - x) * y / (y - next_y))


def fastest(points: Iterable[Point], which: Callable[[str], bool]) -> list[tuple[int, float]]:
    """Return (tokens, microseconds for one sample) of the fastest of some contenders at each size, sizes rising."""
    best: dict[int, float] = {}
    for point in points:
        time_us = point.per_sample(point.median_us)
        if time_us is not None and which(point.contender):
            tokens = point.shape["tokens"]
            best[tokens] = min(time_us, best.get(tokens, math.inf))
    return sorted(best.items())


def _series(points: Iterable[Point]) -> dict[Series, list[Point]]:
    series: dict[Series, list[Point]] = {}
    for point in points:
        if point.subject == ATTENTION and point.median_us is not None:
            series.setdefault((point.contender, point.dtype, point.direction), []).append(point)
    return series
