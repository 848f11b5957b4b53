"""The race of attentions: who takes part, who is judged, and what becomes of those who fail. No test asserts a speed."""

import pytest
import torch

from flatten_transformer.benchmark import contenders, op
from flatten_transformer.benchmark.contenders import Contender, Inputs, Shape, draw_inputs
from flatten_transformer.benchmark.op import draw_task, measure, sweep_shapes
from flatten_transformer.benchmark.race import (
    DIRECTIONS,
    FORWARD,
    TRAINING,
    Case,
    Entrant,
    Limits,
    Plan,
    make_cases,
    race,
    relative_error,
)
from flatten_transformer.benchmark.report import ATTENTION, Point
from flatten_transformer.benchmark.timing import Run

CPU = torch.device("cpu")
SMALL = Shape(2, 4, 6, 32, 2)
QUICK = Limits(budget_s=0.0)  # three rounds


def run(
    shapes: list[Shape], direction: str = FORWARD, dtype: torch.dtype = torch.float32, limits: Limits = QUICK, wanted: str = ""
) -> list[list[Point]]:
    return list(measure(Plan(make_cases(shapes, [dtype], [direction]), CPU, limits, wanted.split() or None, copy_gb_per_s=10.0)))


@pytest.mark.parametrize(
    ("direction", "dtype"),
    [(FORWARD, torch.bfloat16), (FORWARD, torch.float32), (TRAINING, torch.float16), (TRAINING, torch.float32)],
    ids=str,
)
def test_every_contender_has_a_time_or_a_reason_and_ours_is_judged_before(direction: str, dtype: torch.dtype) -> None:
    (points,) = run([SMALL], direction, dtype)
    assert [point.contender for point in points] == contenders.names(compiled=False)
    for point in points:
        assert (point.median_us is None) == (point.reason is not None), point
        assert point.floor_us is not None
        if point.median_us is not None:
            assert point.q1_us is not None
            assert point.q3_us is not None
            assert 0 < point.q1_us <= point.median_us <= point.q3_us
            assert point.rounds == 3
            assert point.peak_mib is not None
            assert point.peak_mib > 0
            assert point.speedup() is not None
        elif point.contender in ("ours-cpp", "ours-triton"):
            assert "backend" in (point.reason or "")
    by_name = {point.contender: point for point in points}
    for name in ("ours", "ours-portable", "released", "relu-linear", "softmax-math"):
        assert by_name[name].median_us is not None
    assert (by_name["softmax-cudnn"].reason or "").startswith("PyTorch has no such kernel")
    errors = {point.contender: point.relative_error for point in points if point.relative_error is not None}
    assert {"ours", "ours-portable", "released"} <= set(errors)
    assert all(error < (1e-5 if dtype == torch.float32 else 2e-2) for error in errors.values())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_contender_of_ours_that_computes_something_else_gets_no_time(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(inputs: Inputs, shape: Shape) -> torch.Tensor:
        right = contenders.ours(inputs, shape)
        return right + 1e-3 * right.detach().roll(1, 0)

    monkeypatch.setattr(op, "contenders", lambda *_, **__: [Contender("ours", wrong), Contender("released", contenders.released)])
    (points,) = run([SMALL], direction)
    assert points[0].median_us is None
    assert (points[0].reason or "").startswith("check red: relative error")
    assert points[1].median_us is not None


def test_a_wrong_gradient_alone_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def detached(inputs: Inputs, shape: Shape) -> torch.Tensor:
        return contenders.ours(inputs._replace(encoding=inputs.encoding.detach()), shape) + 0 * inputs.encoding

    monkeypatch.setattr(op, "contenders", lambda *_, **__: [Contender("ours", detached)])
    assert run([SMALL], FORWARD)[0][0].reason is None
    assert (run([SMALL], TRAINING)[0][0].reason or "").startswith("check red")


def test_who_was_too_slow_stays_out_of_larger_sizes_and_says_where_it_stopped() -> None:
    shapes = [SMALL, SMALL._replace(batch=4), SMALL._replace(batch=1)]
    slow, larger, smaller = run(shapes, limits=Limits(budget_s=0.0, call_s=1e-9), wanted="ours released")
    assert all((point.reason or "").startswith("too slow: one call took") for point in (slow[0], smaller[0]))
    assert "stopped at 24 tokens" in (larger[0].reason or "")


def test_who_needs_too_much_memory_is_not_tried() -> None:
    limits = Limits(budget_s=0.0, memory_mib=5.0)
    (points,) = run([Shape(1, 24, 32, 8, 2)], limits=limits, wanted="softmax-math softmax-flash")
    by_name = {point.contender: point for point in points}
    assert (by_name["softmax-math"].reason or "").startswith("too large: one call needs about")
    assert by_name["softmax-flash"].median_us is not None


def test_what_starts_after_the_deadline_is_left_out() -> None:
    (points,) = run([SMALL], limits=Limits(budget_s=0.0, deadline_s=0.0))
    assert all(point.reason for point in points)
    assert "left out" in (points[0].reason or "")


def test_a_failure_with_a_reason_is_noted_and_a_bug_is_not_swallowed() -> None:
    def blank(name: str) -> Point:
        return Point(ATTENTION, name, {"batch": 1}, "float32", FORWARD)

    def no_memory() -> Run:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")

    def bug() -> Run:
        raise TypeError("a bug")

    (point,) = race([Entrant("large", no_memory)], blank, [], CPU, QUICK)
    assert point.reason == "too large: out of memory"
    with pytest.raises(TypeError, match="a bug"):
        race([Entrant("broken", bug)], blank, [], CPU, QUICK)


def test_input_sets_differ_in_their_tokens_and_share_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    task = draw_task(Case(SMALL, torch.float32, FORWARD), CPU)
    assert len(task.inputs) > 1
    assert not torch.equal(task.inputs[0].packed, task.inputs[1].packed)
    assert task.inputs[0].encoding is task.inputs[1].encoding
    monkeypatch.setattr(op, "_CACHE_MIB", 3 * task.inputs[0].packed.nbytes / 2**20)
    assert len(draw_task(Case(SMALL, torch.float32, FORWARD), CPU).inputs) == 3


def test_queries_keys_and_values_are_slices_of_one_projection() -> None:
    inputs = draw_inputs(SMALL, torch.float32, CPU)
    storages = {x.untyped_storage().data_ptr() for x in contenders._heads(inputs.packed, SMALL)}
    assert storages == {inputs.packed.untyped_storage().data_ptr()}


def test_a_sweep_keeps_its_batches_full_and_its_grids_whole() -> None:
    shapes = sweep_shapes([1048576, 49, 8192], 96, 3, 16384)
    assert [shape.tokens for shape in shapes] == [49, 8192, 1048576]
    assert [shape.batch for shape in shapes] == [334, 2, 1]
    assert sweep_shapes([13], 96, 3, 1)[0].height == 1


def test_the_floor_counts_four_tensors_forward_and_eleven_with_backward() -> None:
    tensor_bytes = 2 * 24 * 32 * 4
    for direction, tensors in ((FORWARD, 4), (TRAINING, 11)):
        floor_us = op.floor_us(Case(SMALL, torch.float32, direction), 10.0)
        assert floor_us == pytest.approx(tensors * tensor_bytes / 10e9 * 1e6)


def test_the_relative_error_is_that_of_the_output_or_of_all_gradients() -> None:
    one, other = torch.ones(4), torch.full((4,), 1.5)
    assert relative_error([one, one, one], [one, one, one]) == 0
    assert relative_error([other, one, one], [one, one, one]) == pytest.approx(0.5)
    assert relative_error([one, one, other], [one, one, one]) == pytest.approx(0.5 / 2**0.5)
    assert relative_error([one * float("nan")], [one]) == float("inf")
