"""The race of models: who stands beside whom, and what is judged. No test asserts a speed."""

import gc

import pytest
import timm
import torch

from flatten_transformer.benchmark import model as models
from flatten_transformer.benchmark.model import Images, build_flatten, build_model, make_cases, measure
from flatten_transformer.benchmark.race import FORWARD, TRAINING, Limits, Plan
from flatten_transformer.benchmark.released import use_released_form
from flatten_transformer.benchmark.report import RELEASED, SOFTMAX

CPU = torch.device("cpu")
SMALLEST = "flatten_pvt_v2_b0"


def test_every_flatten_model_has_a_namesake_that_timm_knows() -> None:
    assert set(models.NAMESAKES) == set(timm.list_models("flatten_*"))
    assert all(timm.is_model(namesake.name) for namesake in models.NAMESAKES.values())


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_and_its_namesake_are_built_for_the_same_images(name: str) -> None:
    namesake = models.NAMESAKES[name]
    with torch.device("meta"):
        for model in (build_model(name, 96), build_model(namesake.name, 96, namesake.options)):
            assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


@pytest.mark.parametrize("size_px", [96, 224, 512])
def test_flatten_swin_attends_to_whole_maps_so_the_released_form_which_cannot_pad_can_stand_in(size_px: int) -> None:
    with torch.device("meta"):
        model = use_released_form(build_model("flatten_swin_tiny_patch4_224", size_px))
        assert model(torch.zeros(1, 3, size_px, size_px)).shape == (1, 1000)


def test_what_starts_at_zero_does_not_when_the_models_are_judged() -> None:
    model = build_flatten(Images(SMALLEST, 1, 64))
    encodings = [p for name, p in model.named_parameters() if name.endswith(("positional_encoding", "scale"))]
    assert len(encodings) == 16
    assert all(encoding.abs().max() > 0 for encoding in encodings)


def test_a_race_gives_times_and_ratios_to_both_baselines() -> None:
    plan = Plan(make_cases([SMALLEST], [64], 1, [torch.float32], [TRAINING]), CPU, Limits(budget_s=0.0))
    (points,) = measure(plan)
    assert [point.contender for point in points] == ["ours", "released", "softmax"]
    for point in points:
        assert point.reason is None
        assert point.peak_mib is not None
        assert set(point.time_ratios) == {RELEASED, SOFTMAX}
        assert point.contender not in point.time_ratios or point.time_ratios[point.contender].median == 1
    assert points[0].relative_error is not None
    assert points[0].relative_error < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_recorded_step_is_the_step() -> None:
    (case,) = make_cases([SMALLEST], [64], 2, [torch.float32], [TRAINING])
    eager, graphed = (models._build_run(f"softmax{way}", torch.device("cuda"), case) for way in ("", "-graphed"))
    assert [result.shape for result in graphed.step(0)] == [result.shape for result in eager.step(0)]
    first = [result.clone() for result in graphed.step(0)]
    gc.collect()
    rubbish = [torch.full((2**18,), float("nan"), device="cuda") for _ in range(200)]  # where a dead model would have been
    assert all(torch.allclose(result, before) for result, before in zip(graphed.step(0), first, strict=True)), len(rubbish)


def test_a_model_that_computes_something_else_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "TOLERANCE", 0.0)
    plan = Plan(make_cases([SMALLEST], [64], 1, [torch.float32], [FORWARD]), CPU, Limits(budget_s=0.0), contenders=["ours"])
    ((ours,),) = measure(plan)
    assert ours.median_us is None
    assert (ours.reason or "").startswith("check red")
