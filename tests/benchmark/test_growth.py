"""What points say together, on points whose answer is known."""

import pytest

from flatten_transformer.benchmark.growth import crossover, exponent, fastest, growth, means
from flatten_transformer.benchmark.report import ATTENTION, RELEASED, Point
from flatten_transformer.benchmark.timing import Spread


def point(
    contender: str, tokens: int, time_us: float | None, batch: int = 1, memory_mib: float = 1.0, speedup: float = 1.0
) -> Point:
    shape = {"batch": batch, "height": 1, "width": tokens, "channels": 8, "heads": 2, "tokens": tokens}
    ratios = {} if time_us is None else {RELEASED: Spread(1 / speedup, 1 / speedup, 1 / speedup)}
    return Point(ATTENTION, contender, shape, "float32", "forward", time_us, peak_mib=memory_mib, time_ratios=ratios)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power: float) -> None:
    sizes = [49.0, 300.0, 5000.0]
    assert exponent(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_growth_is_that_of_one_sample_and_begins_where_fixed_costs_end() -> None:
    points = [point("ours", n, 64.0, batch=65536 // n, memory_mib=2.0) for n in (4096, 16384, 65536)]
    points += [point("ours", 49, 1e6), point("softmax", 4096, 1.0), point("softmax", 65536, 256.0, memory_mib=16.0)]
    points += [point("once", 4096, 1.0), point("never", 4096, None), point("never", 65536, None)]
    found = {one.contender: one for one in growth(points)}
    assert set(found) == {"ours", "softmax"}
    assert (found["ours"].from_tokens, found["ours"].to_tokens) == (4096, 65536)
    assert found["ours"].time_exponent == pytest.approx(1)  # the batch shrinks as N grows
    assert found["ours"].memory_exponent == pytest.approx(1)
    assert found["softmax"].time_exponent == pytest.approx(2)
    assert found["softmax"].memory_exponent == pytest.approx(1)


def test_the_mean_speedup_is_geometric_and_leaves_out_what_was_not_measured() -> None:
    points = [point("ours", n, 1.0, speedup=speedup) for n, speedup in ((49, 2.0), (196, 8.0))] + [point("ours", 784, None)]
    (mean,) = means(points)
    assert (mean.contender, mean.shapes) == ("ours", 2)
    assert mean.speedup == pytest.approx(4)


def test_the_crossover_is_the_last_turn_and_only_if_ours_stays_ahead() -> None:
    flat = [(10, 2.0), (100, 2.0), (1000, 2.0)]
    assert crossover(flat, [(10, 1.0), (100, 4.0), (1000, 16.0)]) == pytest.approx(10 * 10**0.5)
    assert crossover(flat, [(10, 4.0), (100, 4.0), (1000, 4.0)]) is None  # ahead everywhere
    assert crossover(flat, [(10, 1.0), (100, 1.0), (1000, 1.0)]) is None  # nowhere
    assert crossover(flat, [(10, 1.0), (100, 4.0), (1000, 1.0)]) is None  # not at the end
    assert crossover(flat, [(10, 1.0)]) is None  # softmax was too slow to be measured further on


def test_the_fastest_of_several_is_taken_at_each_size() -> None:
    points = [
        point("softmax-a", 49, 4.0, batch=2),
        point("softmax-b", 49, 1.0),
        point("ours", 49, 0.1),
        point("softmax-b", 196, None),
    ]
    assert fastest(points, lambda name: name.startswith("softmax")) == [(49, 1.0)]
