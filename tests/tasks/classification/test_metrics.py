from pathlib import Path

import pytest
import torch
from PIL import Image

from flatten_transformer.tasks.classification.metrics import ConfidentErrors
from flatten_transformer.tasks.classification.plots import draw_confusion, draw_images
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
