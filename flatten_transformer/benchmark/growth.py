"""Statistics over points: scaling exponents, means over shapes, and the crossover with softmax."""

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
    """Fit the scaling exponents of time and memory per sample in tokens, for each contender of a sweep.

    Args:
        points: Points of attention; a fit takes two sizes or more.
        from_tokens: Smallest size of the fit: below it, fixed costs of a call dominate.
    """
    result = []
    for (contender, dtype, direction), series in _series(points).items():
        timed = [point for point in series if point.shape["tokens"] >= from_tokens]
        tokens = [point.shape["tokens"] for point in timed]
        if len(set(tokens)) < 2 or len({(p.shape["channels"], p.shape["heads"]) for p in timed}) > 1:
            continue
        memories = [point.per_sample(point.peak_mib) or 0.0 for point in timed]
        result.append(
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
    return tuple(result)


def means(points: Iterable[Point]) -> tuple[Mean, ...]:
    """Return each contender's geometric mean speed-up over the released form, over all shapes."""
    result = []
    for (contender, dtype, direction), series in _series(points).items():
        speedups = [speedup for point in series if (speedup := point.speedup()) is not None]
        if speedups:
            result.append(Mean(contender, dtype, direction, len(speedups), statistics.geometric_mean(speedups)))
    return tuple(result)


def crossover(ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]]) -> float | None:
    """Return the number of tokens above which ours costs less, interpolated on log axes.

    Args:
        ours: (tokens, cost), tokens ascending.
        theirs: (tokens, cost) of the other contender.

    Returns:
        None without a crossover: ours costs less at all common sizes, or more at the largest.

    Example:
        >>> round(crossover([(100, 2.0), (10000, 2.0)], [(100, 1.0), (10000, 4.0)]))
        1000
    """
    other = dict(theirs)
    gaps = [(math.log(tokens), math.log(cost / other[tokens])) for tokens, cost in ours if tokens in other]
    crossings = [(low, high) for low, high in pairwise(gaps) if low[1] > 0 >= high[1]]
    if not crossings or gaps[-1][1] > 0:
        return None
    (x, y), (next_x, next_y) = crossings[-1]
    return math.exp(x + (next_x - x) * y / (y - next_y))


def fastest(points: Iterable[Point], which: Callable[[str], bool]) -> list[tuple[int, float]]:
    """Return (tokens, microseconds per sample) of the fastest selected contender at each size, ascending."""
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
