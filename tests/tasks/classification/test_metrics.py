import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score, MulticlassPrecision, MulticlassRecall

from flatten_transformer.tasks.classification.metrics import ConfidentErrors, class_numbers
from flatten_transformer.tasks.classification.plots import draw_confusion, draw_images
from flatten_transformer.tasks.optimization import Optimization
from tests.tasks.conftest import Fit, MakeTask


def test_the_most_confident_errors_of_a_pass_are_kept_and_forgotten_at_the_next() -> None:
    errors = ConfidentErrors(limit=2)
    logits = torch.tensor([[5.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 9.0]])
    errors.update(logits[:2], torch.tensor([1, 1]), torch.tensor([10, 11]))
    errors.update(logits[2:], torch.tensor([1, 1]), torch.tensor([12, 13]))
    assert [error.image_index for error in errors.top] == [10, 12]
    assert errors.top[0][1:3] == (0, 1)
    errors.reset()
    assert errors.top == []


def test_a_validation_counts_each_image_in_the_matrix_once(make_task: MakeTask, fit: Fit) -> None:
    task = make_task()
    fit(task, limit_val_batches=1.0)
    assert task.confused is not None
    assert task.confused.sum() == 180
    accuracy = task.confused.diag().sum() / 180
    torch.testing.assert_close(accuracy, task.trainer.callback_metrics["val/accuracy"])


@pytest.mark.parametrize("classes", [2, 60])
def test_a_confusion_matrix_of_any_size_can_be_drawn(classes: int, tmp_path: Path) -> None:
    matrix = torch.randint(0, 9, (classes, classes)) * (torch.rand(classes, classes) < 0.1)
    draw_confusion(matrix, [f"class {index}" for index in range(classes)], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.width < 2500


def test_every_image_is_seen_in_the_picture_of_mistakes(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue"]
    draw_images([Image.new("RGB", (9, 5), colour) for colour in colours], colours, "all", tmp_path / "images.png")
    with Image.open(tmp_path / "images.png") as file:
        picture = file.convert("RGB")
    seen = {colour for _, colour in picture.getcolors(picture.width * picture.height) or []}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= seen


def test_the_numbers_of_a_class_are_those_counted_by_hand_and_nothing_is_said_of_one_without_images() -> None:
    counts = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 1], [4, 0, 0, 0], [0, 0, 0, 0]])  # the third is never predicted
    numbers = class_numbers(counts)
    assert numbers["accuracy"] == pytest.approx([6 / 8, 3 / 5, 0, math.nan], nan_ok=True)
    assert numbers["precision"] == pytest.approx([6 / 11, 3 / 5, 0, math.nan], nan_ok=True)
    assert numbers["f1"] == pytest.approx([12 / 19, 6 / 10, 0, math.nan], nan_ok=True)


def test_the_numbers_of_a_class_are_those_of_torchmetrics() -> None:
    labels, guesses = torch.randint(0, 6, (2, 300))
    numbers = class_numbers(torch.bincount(labels * 6 + guesses, minlength=36).reshape(6, 6))
    for name, metric in (("accuracy", MulticlassRecall), ("precision", MulticlassPrecision), ("f1", MulticlassF1Score)):
        assert numbers[name] == pytest.approx(metric(6, average="none")(guesses, labels).tolist(), rel=1e-6)


def test_the_training_accuracy_is_the_share_of_images_taken_for_the_larger_part_of_their_target(
    make_task: MakeTask, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, larger, hits = make_task(optim=Optimization(lr=1e-2, warmup_epochs=0)), [], []

    def mix(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        larger.append((labels + 1) % num_classes)
        return images, 0.6 * F.one_hot(larger[-1], num_classes) + 0.4 * F.one_hot(labels, num_classes)

    def spy(model: nn.Module, _: Any, logits: Tensor) -> None:
        if model.training:
            hits.append([logits.argmax(1) == larger[-1], logits.argmax(1) == (larger[-1] - 1) % 10])

    monkeypatch.setattr(task, "mixing", mix)
    task.model.register_forward_hook(spy)
    trainer = fit(task, max_epochs=1, limit_train_batches=6)
    of_larger, of_smaller = (torch.cat(column).float().mean() for column in zip(*hits, strict=True))
    assert of_larger != of_smaller
    torch.testing.assert_close(trainer.callback_metrics["train/accuracy"], of_larger)


def test_a_validation_keeps_the_numbers_of_its_classes_and_logs_their_mean_f1(make_task: MakeTask, fit: Fit) -> None:
    task = make_task()
    trainer = fit(task, max_epochs=1, limit_val_batches=1.0)
    assert task.per_class is not None
    assert (task.per_class.split, sum(task.per_class.support), task.per_class.support[0]) == ("val", 180, 18)
    assert float(trainer.callback_metrics["val/macro_f1"]) == pytest.approx(task.per_class.mean("f1"), rel=1e-6)
    assert task.per_class.mean("accuracy") == pytest.approx(float(trainer.callback_metrics["val/accuracy"]), rel=1e-6)
