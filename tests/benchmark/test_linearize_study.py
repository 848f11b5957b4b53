"""The study of students: its runs are what their names say, and its page tells what the results say."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.linearize.report import draw, page, rows_of, total_time
from flatten_transformer.tasks.model_file import load_model
from flatten_transformer.training.process import without_lightning_noise
from tests.images import write_packed

FILE = Path(__file__).parents[2] / "benchmarks" / "linearize" / "run.py"
NAMES = ("softmax", "focused", "relu", "focused trained on", "focused from scratch")
BEFORE = {"focused trained on": "focused"}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("linearize_run", FILE)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


STUDY = load_script()


def by_labels(name: str, seed: int, accuracy: float, *cpu_s: float | None) -> dict[str, Any]:
    return {"name": name, "seed": seed, "accuracy": accuracy, "cpu_s": list(cpu_s)}


def student(name: str, seed: int, accuracies: list[float], *cpu_s: float | None) -> dict[str, Any]:
    stages = zip(("untrained", "stage 1", "stage 2", "stage 3"), accuracies, strict=True)
    judged = {stage: {"accuracy": accuracy, "blocks": {"0": 1 - accuracy, "1": 0.0}} for stage, accuracy in stages}
    return {"name": name, "seed": seed, "stages": judged, "cpu_s": list(cpu_s)}


RESULTS = [
    by_labels("softmax", 0, 0.80, 100),
    by_labels("softmax", 1, 0.50, 50),
    student("focused", 0, [0.20, 0.60, 0.70, 0.80], 2, 3, 4),
    student("focused", 1, [0.20, 0.40, 0.45, 0.49], 2, None, 2),  # was resumed
    student("relu", 0, [0.2, 0.3, 0.4, 0.76], 1, 1, 1),
    by_labels("focused trained on", 0, 0.82, 11),
    by_labels("focused from scratch", 0, 0.81, 130),
    by_labels("focused from scratch", 7, 0.10, 130),  # its teacher is missing
]


def test_each_seed_is_judged_beside_its_own_teacher() -> None:
    rows = rows_of(RESULTS, NAMES)
    assert list(rows) == list(NAMES)
    focused = rows["focused"]
    assert focused.shares["untrained"] == pytest.approx([25, 40])
    assert focused.shares["stage 3"] == pytest.approx([100, 98])
    assert focused.accuracies["stage 3"] == pytest.approx([80, 49])
    assert focused.errors["stage 1"] == pytest.approx([20, 30])
    assert {stage: list(map(float, times)) for stage, times in focused.times.items()} == {
        "stage 1": pytest.approx([2]),
        "stage 2": pytest.approx([5]),
        "stage 3": pytest.approx([9]),
    }
    assert rows["focused from scratch"].shares["stage 3"] == pytest.approx([101.25])
    assert total_time(rows["focused trained on"], rows, BEFORE) == pytest.approx(100 + 9 + 11)
    assert total_time(rows["focused from scratch"], rows, BEFORE) == pytest.approx(130)


def test_the_time_of_what_was_resumed_is_not_told() -> None:
    rows = rows_of([by_labels("softmax", 0, 0.8, None), by_labels("focused from scratch", 0, 0.8, 9)], NAMES)
    assert total_time(rows["softmax"], rows, BEFORE) is None
    assert "| softmax | 80.00 |  | 1 |" in page(rows, BEFORE)


def test_the_page_and_the_picture_tell_the_rows(tmp_path: Path) -> None:
    rows = rows_of(RESULTS, NAMES)
    text = page(rows, BEFORE)
    assert "| focused | 32.50 ± 10.61 | 77.50 ± 3.54 | 88.75 ± 1.77 | 99.00 ± 1.41 | 9.0 | 0.400 | 0.250 | 0.177 | 2 |" in text
    assert "Seeds differ by 1.41 points after the last stage (the deviation of all rows, pooled, 1 degrees of" in text
    assert "| focused trained on | 82.00 | 120 | 1 |" in text
    assert "| relu | 25.00 |" in text.replace("± nan", "")
    assert "| relu | 76.00" not in text  # nothing was begun with it
    draw(rows, BEFORE, tmp_path / "linearize.png")
    assert (tmp_path / "linearize.png").stat().st_size > 10_000


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The study on 60 images, a step a training."""
    monkeypatch.chdir(tmp_path)
    images = STUDY.Images(
        dataset="torch/fashion_mnist", root=write_packed(tmp_path, train=40, test=20), val_share=0.5, batch_size=8
    )
    monkeypatch.setattr(STUDY, "IMAGES", images)
    short = {
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.max_epochs": 1,
        "data.root": str(images.root),
    }
    monkeypatch.setattr(STUDY, "BY_LABELS", {name: {**options, **short} for name, options in STUDY.BY_LABELS.items()})
    monkeypatch.setattr(STUDY, "STAGES", {stage: {**options, **short} for stage, options in STUDY.STAGES.items()})
    return STUDY


def test_a_study_goes_on_where_it_was_stopped_from_the_teacher_to_the_student_trained_on(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "STAGES", {stage: small.STAGES[stage] for stage in (1, 2)})
    monkeypatch.setattr(small, "BEFORE", {"focused trained on": "focused keeping 1"})
    train = small.train

    def stopped(command: str, arguments: list[str]) -> None:
        if "linearize/stage2" in arguments:
            raise SystemExit(143)
        train(command, arguments)

    with without_lightning_noise():
        teacher = small.run("softmax", 3)
        monkeypatch.setattr(small, "train", stopped)
        with pytest.raises(SystemExit):
            small.run("focused keeping 1", 3)
        first = small.folder_of("focused keeping 1", 3) / "stage1" / "model.safetensors"
        written = first.stat().st_mtime_ns
        monkeypatch.setattr(small, "train", train)
        kept = small.run("focused keeping 1", 3)
        trained_on = small.run("focused trained on", 3)
    assert first.stat().st_mtime_ns == written
    assert list(kept["stages"]) == ["untrained", "stage 1", "stage 2"]
    assert kept["stages"]["stage 2"]["teacher_accuracy"] == pytest.approx(teacher["accuracy"])
    assert len(kept["form"]["keep"]) == 1
    assert len(kept["stages"]["stage 2"]["blocks"]) == 3
    assert all(seconds > 0 for seconds in kept["cpu_s"])
    _, info = load_model(small.weights_of("focused trained on", 3))
    assert info.model_args["linearize"] == kept["form"]
    assert 0 <= trained_on["accuracy"] <= 1


def test_a_student_of_random_weights_has_copied_nothing(small: ModuleType) -> None:
    with without_lightning_noise():
        small.run("softmax", 0)
    softmax, _ = load_model(small.weights_of("softmax", 0))
    random, _ = load_model(
        small.random_student(small.weights_of("softmax", 0), {"attention": "focused", "keep": []}, Path("runs"))
    )
    assert not torch.equal(softmax.state_dict()["blocks.0.mlp.fc1.weight"], random.state_dict()["blocks.0.mlp.fc1.weight"])


def test_a_student_without_its_teacher_says_what_to_train_first(small: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no .*softmax-5.model\.safetensors: train 'softmax' with seed 5 on this machine first"):
        small.run("focused", 5)


def test_the_first_batches_are_no_more_than_there_are() -> None:
    batches: list[Any] = [(torch.zeros(2), None), (torch.ones(2), None)]
    assert [images.sum() for images, _ in STUDY.First(1, batches)] == [0]
    assert (len(STUDY.First(1, batches)), len(STUDY.First(9, batches)), len(list(STUDY.First(9, batches)))) == (1, 2, 2)


def test_every_result_says_what_it_depends_on() -> None:
    origins = [STUDY.origin(name) for name in STUDY.NAMES]
    assert all("recipe" in origin.get("teacher", origin) for origin in origins)
    forms = [origin["form"] for origin in origins if "form" in origin]
    assert len(forms) == len(STUDY.STUDENTS)
