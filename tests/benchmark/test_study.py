"""The study's script: every variant is a model, and its page tells what the results say."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import yaml  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.training.recipes import find_recipe
from tests.images import write_packed

FILE = Path(__file__).parents[2] / "benchmarks" / "study" / "run.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_run", FILE)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


STUDY = load_script()


@pytest.mark.parametrize("name", STUDY.VARIANTS)
def test_every_variant_is_a_model_on_the_tokens_of_deit(name: str) -> None:
    recipe = yaml.safe_load(find_recipe(STUDY.RECIPE).read_text("utf-8"))["model"]
    with torch.device("meta"):
        model = timm.create_model(recipe["name"], in_chans=1, **{**recipe["model_args"], **STUDY.VARIANTS[name]})
        assert model.forward_features(torch.zeros(1, 1, 28, 28)).shape == (1, 196, 32)


@pytest.mark.parametrize("name", ["relu + focusing", "focused, p = 2"])
def test_the_command_builds_the_variant(name: str, tmp_path: Path) -> None:
    data = ["--data.root", str(write_packed(tmp_path, train=40, test=10)), "--data.val_share", "0.5"]
    recipe = yaml.safe_load(find_recipe(STUDY.RECIPE).read_text("utf-8"))["model"]["model_args"]
    with without_lightning_noise():
        cli = TrainingCLI("fit", [*STUDY.command(name, 5), *data, "--trainer.fast_dev_run", "true"])
    built = {key: value for key, value in cli.model.model_args.items() if key in {*recipe, *STUDY.VARIANTS[name]}}
    assert built == {**recipe, **STUDY.VARIANTS[name]}


def result(variant: str, seed: int, accuracy: float) -> dict[str, Any]:
    figures = {"parameters": 1000, "macs": 2e6}
    return {"variant": variant, "seed": seed, "test_accuracy": accuracy, **figures}


def test_the_page_and_the_picture_tell_mean_deviation_and_seeds(tmp_path: Path) -> None:
    results = [result("focused", 0, 0.90), result("focused", 1, 0.92), result("softmax", 0, 0.88)]
    summary = STUDY.summarise(results, {"focused": 100.0})
    page = STUDY.page(summary)
    assert "| focused | 91.00 ± 1.41 % | 2 | 1,000 | 2.00 | 100 |" in page
    assert "| softmax | 88.00 % | 1 | 1,000 | 2.00 |  |" in page
    assert "hydra" not in page
    # 12.706 = t(0.975, 1 degree of freedom) times 1.41 times the root of 2 / 2
    assert "Seeds differ by 1.41 points (the deviation of all variants, pooled, 1 degrees of freedom)" in page
    assert "less than 17.97 points apart" in page
    STUDY.draw(summary, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 5000


def test_the_speed_of_every_variant_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STUDY, "VARIANTS", {name: STUDY.VARIANTS[name] for name in ("softmax", "focused")})
    speeds = STUDY.measure_speeds(budget_s=0)
    assert list(speeds["images_per_second"]) == ["softmax", "focused"]
    assert min(speeds["images_per_second"].values()) > 0


def test_a_result_of_another_recipe_is_of_another_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    before = STUDY.origin("softmax")
    assert before != STUDY.origin("focused")
    monkeypatch.setattr(STUDY, "RECIPE", "digits/softmax_deit")
    assert before != STUDY.origin("softmax")
