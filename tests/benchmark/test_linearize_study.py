"""The study of students: its runs are what their names say, and its page tells what the results say."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import benchmarks.linearize.trainings as study
from benchmarks.linearize import speed
from benchmarks.linearize.report import draw, page, rows_of, total_time
from flatten_transformer.commands.linearize_teacher import Images
from flatten_transformer.tasks.model_file import load_model
from flatten_transformer.training.process import without_lightning_noise
from tests.images import write_packed

NAMES = ("softmax", "focused", "relu", "focused trained on", "focused from scratch")
BEFORE = {"focused trained on": "focused"}
TIMES = {
    "softmax": {"stage 3": 100.0},
    "focused": {"stage 1": 2.0, "stage 2": 5.0, "stage 3": 9.0},
    "focused trained on": {"stage 3": 11.0},
    "focused from scratch": {"stage 3": 130.0},
}


def by_labels(name: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {"name": name, "seed": seed, "accuracy": accuracy}


def student(name: str, seed: int, accuracies: list[float]) -> dict[str, Any]:
    stages = zip(("untrained", "stage 1", "stage 2", "stage 3"), accuracies, strict=True)
    judged = {stage: {"accuracy": accuracy, "blocks": {"0": 1 - accuracy, "1": 0.0}} for stage, accuracy in stages}
    return {"name": name, "seed": seed, "stages": judged}


RESULTS = [
    by_labels("softmax", 0, 0.80),
    by_labels("softmax", 1, 0.50),
    student("focused", 0, [0.20, 0.60, 0.70, 0.80]),
    student("focused", 1, [0.20, 0.40, 0.45, 0.49]),
    student("relu", 0, [0.2, 0.3, 0.4, 0.76]),
    by_labels("focused trained on", 0, 0.82),
    by_labels("focused from scratch", 0, 0.81),
    by_labels("focused from scratch", 7, 0.10),  # its teacher is missing
]


def test_each_seed_is_judged_beside_its_own_teacher() -> None:
    rows = rows_of(RESULTS, NAMES, TIMES)
    assert list(rows) == list(NAMES)
    focused = rows["focused"]
    assert focused.shares["untrained"] == pytest.approx([25, 40])
    assert focused.shares["stage 3"] == pytest.approx([100, 98])
    assert focused.accuracies["stage 3"] == pytest.approx([80, 49])
    assert focused.errors["stage 1"] == pytest.approx([0.2, 0.3])
    assert rows["focused from scratch"].shares["stage 3"] == pytest.approx([101.25])
    assert total_time(rows["focused trained on"], rows, BEFORE) == pytest.approx(100 + 9 + 11)
    assert total_time(rows["focused from scratch"], rows, BEFORE) == pytest.approx(130)


def test_times_that_were_not_measured_are_not_told() -> None:
    rows = rows_of(RESULTS, NAMES, {})
    assert total_time(rows["focused trained on"], rows, BEFORE) is None
    assert "| softmax | 65.00 ± 21.21 |  | 2 |" in page(rows, BEFORE)


def test_the_page_and_the_picture_tell_the_rows(tmp_path: Path) -> None:
    rows = rows_of(RESULTS, NAMES, TIMES)
    text = page(rows, BEFORE)
    assert (
        "| focused | 32.50 ± 10.61 | 77.50 ± 3.54 | 88.75 ± 1.77 | 99.00 ± 1.41 | 2.0 | 9.0 | 0.400 | 0.250 | 0.177 | 2 |" in text
    )
    assert "After the last stage seeds differ by 1.41 points (the deviation of all rows above 90 %, pooled,\n1 degrees" in text
    assert "| focused trained on | 82.00 | 120 | 1 |" in text
    assert "| relu | 25.00 |" in text.replace("± nan", "")
    assert "| relu | 76.00" not in text  # nothing was begun with it
    draw(rows, BEFORE, tmp_path / "linearize.png")
    assert (tmp_path / "linearize.png").stat().st_size > 10_000


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The study on 60 images, a step a training."""
    monkeypatch.chdir(tmp_path)
    images = Images(dataset="torch/fashion_mnist", root=write_packed(tmp_path, train=40, test=20), val_share=0.5, batch_size=8)
    monkeypatch.setattr(study, "IMAGES", images)
    short = {
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.max_epochs": 1,
        "data.root": str(images.root),
    }
    monkeypatch.setattr(study, "BY_LABELS", {name: {**options, **short} for name, options in study.BY_LABELS.items()})
    monkeypatch.setattr(study, "STAGES", {stage: {**options, **short} for stage, options in study.STAGES.items()})
    return study


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
    _, info = load_model(small.weights_of("focused trained on", 3))
    assert info.model_args["linearize"] == kept["form"]
    assert 0 <= trained_on["accuracy"] <= 1


def test_a_student_of_random_weights_has_copied_nothing(small: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "STAGES", {1: small.STAGES[1]})
    name, mlp = "focused from random weights", "blocks.0.mlp.fc1.weight"  # stage 1 leaves it alone
    with without_lightning_noise():
        small.run("softmax", 0)
        small.run(name, 0)
    folder = small.folder_of(name, 0)
    files = (small.weights_of("softmax", 0), folder / "random.safetensors", folder / "stage1" / "model.safetensors")
    copied, random, student = (load_model(file)[0].state_dict()[mlp] for file in files)
    assert torch.equal(student, random)
    assert not torch.equal(student, copied)


def test_a_student_without_its_teacher_says_what_to_train_first(small: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no .*softmax-5.model\.safetensors: train 'softmax' with seed 5 on this machine first"):
        small.run("focused", 5)


def test_every_kind_of_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "STUDENTS", {"focused keeping 1": {"keep": 1}})
    medians = speed.measure(budget_s=0)["median_us"]
    assert list(medians) == ["softmax", "focused by labels", *(f"focused keeping 1, stage {stage}" for stage in (1, 2, 3))]
    assert min(medians.values()) > 0


def test_times_are_those_of_all_steps_so_far_beside_the_teachers() -> None:
    medians = {f"{name}, stage {stage}": float(stage) for name in study.STUDENTS for stage in (1, 2, 3)}
    times, whole = speed.shares_of_time({"softmax": 4.0, "focused by labels": 3.0, **medians}), 2 * 1688 * 4
    assert times["softmax"] == {"stage 3": 100}
    assert times["focused from scratch"]["stage 3"] == pytest.approx(100 * 3 * 1420 * 3 / whole)
    assert times["softmax trained on"]["stage 3"] == pytest.approx(100 * 844 * 4 / whole)
    after = [200 * 1, 200 * 1 + 50 * 2, 200 * 1 + 50 * 2 + 50 * 3]
    assert list(times["relu"].values()) == pytest.approx([100 * time / whole for time in after])
    assert set(times) == set(study.NAMES)
    early = {key: median for key, median in medians.items() if not key.startswith("relu,")}
    assert set(study.NAMES) - set(speed.shares_of_time({"softmax": 4.0, "focused by labels": 3.0, **early})) == {"relu"}


def test_the_first_batches_are_no_more_than_there_are() -> None:
    batches: list[Any] = [(torch.zeros(2), None), (torch.ones(2), None)]
    assert [images.sum() for images, _ in study.First(1, batches)] == [0]
    assert (len(study.First(1, batches)), len(study.First(9, batches)), len(list(study.First(9, batches)))) == (1, 2, 2)


def test_every_result_says_what_it_depends_on() -> None:
    origins = [study.origin(name) for name in study.NAMES]
    assert all("recipe" in origin.get("teacher", origin) for origin in origins)
    forms = [origin["form"] for origin in origins if "form" in origin]
    assert len(forms) == len(study.STUDENTS)
