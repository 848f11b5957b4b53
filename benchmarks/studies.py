"""What studies share: a result file a run, which a kill leaves alone, and what may be chance."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.progress import note, track
from flatten_transformer.utils.stopping import telling_what_is_kept

Result = Mapping[str, Any]


def check_names(only: Sequence[str], names: Sequence[str]) -> None:
    """Raise SystemExit if a name is none of those that there are."""
    for name in only:
        if name not in names:
            raise SystemExit(f"no run {name!r}: choose some of {'; '.join(names)}")


def run_missing(
    runs: Sequence[tuple[int, str]], folder: Path, run: Callable[[str, int], Result], origin: Callable[[str], Mapping[str, Any]]
) -> None:
    """Do the runs that have no result yet, and write each result.

    Args:
        runs: Seed and name of each.
        folder: Of the results.
        run: Does one, by name and seed, and returns its result.
        origin: What the results of a name depend on besides seed and code; it is written into them.

    Raises:
        SystemExit: If a result is there of another origin.
    """
    there = {each: json.loads(file.read_text("utf-8")) for each in runs if (file := file_of(folder, *each)).exists()}
    for (seed, name), result in there.items():
        if result.get("origin", origin(name)) != origin(name):  # results of early versions do not say
            file = file_of(folder, seed, name)
            raise SystemExit(
                f"{file} is a result of another recipe or of other options of {name!r}: move it away to train it anew"
            )
    if there:
        commits = ", ".join(sorted({str(result["header"]["commit"]) for result in there.values()}))
        note(f"{len(there)} of {len(runs)} results are in {folder} already, of commits {commits}: going on")
    left = [each for each in runs if each not in there]
    with (
        telling_what_is_kept(
            lambda: "every finished run is in results/; the same command goes on, with the run at hand from its last checkpoint"
        ),
        track(left, lambda each: f"{each[1]}, seed {each[0]}", done=len(there)) as tracked,
    ):
        for seed, name in tracked:
            result = {**run(name, seed), "origin": origin(name)}
            write_atomically(file_of(folder, seed, name), json.dumps(result, indent=1).encode())


def file_of(folder: Path, seed: int, name: str) -> Path:
    """Return the file of one result."""
    return folder / f"{name.replace(' ', '_')}-{seed}.json"


def results_in(folder: Path) -> list[Result]:
    """Return all results there are."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def pooled(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation that groups share, and its degrees of freedom.

    Example:
        >>> pooled([[1.0, 3.0], [5.0, 5.0], [9.0]])
        (1.0, 2)
    """
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if not freedom:
        return math.nan, 0
    return math.sqrt(sum((len(group) - 1) * statistics.variance(group) for group in several) / freedom), freedom


def apart_by_chance(deviation: float, freedom: int, seeds: int) -> float:
    """Return how far two given means may be apart by chance, at 95 %, two-sided.

    Args:
        deviation: Of one value.
        freedom: Degrees of freedom of the deviation.
        seeds: Values in each mean.

    Example:
        >>> round(apart_by_chance(1.0, 10, 2), 3)  # t = 2.228
        2.228
    """
    return float(stats.t.ppf(0.975, freedom)) * deviation * math.sqrt(2 / seeds)


def spread_out(values: Sequence[float], gap: float) -> list[float]:
    """Return values in the same order, at least ``gap`` apart, around the same middle as those they came from.

    Example:
        >>> spread_out([1.0, 1.0, 5.0], 1.0)
        [0.6666666666666667, 1.6666666666666667, 4.666666666666667]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    placed: dict[int, float] = {}
    last = -math.inf
    for index in order:
        last = placed[index] = max(values[index], last + gap)
    moved = (sum(placed.values()) - sum(values)) / max(len(values), 1)
    return [placed[index] - moved for index in range(len(values))]
