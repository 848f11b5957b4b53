"""Interleaving and its statistics, on clocks that tell what they are told."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from flatten_transformer.benchmark.memory import peak_mib
from flatten_transformer.benchmark.timing import Run, Spread, interleave, rotated, time_ratios, wall_clock

CPU = torch.device("cpu")


class Recorder:
    """Runs that note who was called and with which turn, and a stopwatch on which the machine slows down at times."""

    def __init__(self, *names: str) -> None:
        self.calls: list[tuple[str, int]] = []
        self.runs = {name: Run(self._step(name)) for name in names}
        self.rounds = 0

    def _step(self, name: str) -> "Step":
        return Step(self.calls, name)

    def stopwatch(self, calls: Sequence[tuple[Run, int]]) -> list[float]:
        self.rounds += 1
        for run, turn in calls:
            run.step(turn)
        slowness = 10.0 if self.rounds % 2 else 1.0
        cost = {"a": 1.0, "b": 2.0, "c": 4.0}
        return [cost[name] * slowness for name, _ in self.calls[-len(calls) :]]


class Step:
    def __init__(self, calls: list[tuple[str, int]], name: str) -> None:
        self.calls, self.name = calls, name

    def __call__(self, turn: int) -> Sequence[Tensor]:
        self.calls.append((self.name, turn))
        return ()


def clock(step_s: float) -> Iterator[float]:
    now_s = 0.0
    while True:
        yield now_s
        now_s += step_s


def test_every_round_calls_everyone_once_in_another_order_and_with_other_inputs() -> None:
    recorder = Recorder("a", "b", "c")
    rounds = interleave(recorder.runs, recorder.stopwatch, budget_s=1e9, max_rounds=6, warmup_rounds=0)
    orders = ["".join(name for name, _ in recorder.calls[i : i + 3]) for i in range(0, 18, 3)]
    assert orders == ["abc", "bca", "cab", "cba", "bac", "acb"]
    assert [turn for _, turn in recorder.calls] == list(range(18))
    assert len(rounds) == 6


def test_everyone_is_first_equally_often_and_follows_each_other_alike() -> None:
    orders = [rotated("abcd", number) for number in range(8)]
    for place in range(4):
        assert sorted(order[place] for order in orders) == sorted("abcd" * 2)
    assert orders[:4] != orders[4:]


def test_the_warm_up_is_dropped() -> None:
    recorder = Recorder("a")
    rounds = interleave(recorder.runs, recorder.stopwatch, budget_s=1e9, max_rounds=3, warmup_rounds=2)
    assert (len(rounds), recorder.rounds) == (3, 5)


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 3), (10.0, 12), (1e9, 20)])
def test_rounds_end_with_the_budget_but_there_are_always_three(budget_s: float, rounds: int) -> None:
    recorder, ticks = Recorder("a", "b"), clock(1.0)
    timed = interleave(recorder.runs, recorder.stopwatch, budget_s=budget_s, max_rounds=20, now_s=lambda: next(ticks))
    assert len(timed) == rounds  # a second passes at each look at the clock: at the start, and after round 3, 4, ...


def test_ratios_are_taken_a_round_at_a_time_so_a_slow_spell_cancels() -> None:
    recorder = Recorder("a", "b", "c")
    rounds = interleave(recorder.runs, recorder.stopwatch, budget_s=1e9, max_rounds=8)
    assert {times["a"] for times in rounds} == {1.0, 10.0}
    assert time_ratios(rounds, "b", "a") == Spread(2.0, 2.0, 2.0)
    assert time_ratios(rounds, "a", "c") == Spread(0.25, 0.25, 0.25)


def test_nothing_to_time_takes_no_time() -> None:
    assert interleave({}, wall_clock, budget_s=1e9) == []


def test_the_wall_clock_calls_once_untimed_and_once_timed_within_the_setting() -> None:
    recorder = Recorder("a")
    times_us = wall_clock([(recorder.runs["a"], 5)])
    assert recorder.calls == [("a", 5), ("a", 6)]
    assert times_us[0] > 0


def test_medians_and_quartiles_of_one_value_and_of_many() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([1.0, 9.0, 2.0]) == Spread(1.5, 2.0, 5.5)


def test_peak_memory_is_what_lives_at_once_and_inputs_do_not_count() -> None:
    x = torch.randn(256, 1024)  # 1 MiB

    def chain() -> Tensor:
        y = x
        for _ in range(4):
            y = y * 2  # each result lives until the next is there
        return y

    assert peak_mib(chain, CPU) == pytest.approx(2.0, abs=1e-3)  # and the factor, a number of 8 bytes
    assert peak_mib(lambda: x.sum(), CPU) < 0.01


def test_peak_memory_sees_what_autograd_keeps() -> None:
    x = torch.randn(256, 1024, requires_grad=True)
    without = peak_mib(lambda: x.detach().exp().sin().sum(), CPU)
    keeping = peak_mib(lambda: torch.autograd.grad(x.exp().sin().sum(), x), CPU)
    assert without == pytest.approx(2.0, abs=0.01)
    assert keeping >= 3.0
