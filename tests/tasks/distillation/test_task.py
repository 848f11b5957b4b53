"""Distillation: what each stage trains and by which loss, what it keeps, and what it refuses."""

from __future__ import annotations

import copy
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flatten_transformer.linearize import block_errors, linearize
from flatten_transformer.tasks.classification.model import build_model
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.distillation.data import DistillationData
from flatten_transformer.tasks.distillation.task import DistillationTask
from flatten_transformer.tasks.model_file import ModelInfo, load_model, save_model
from flatten_transformer.training import class_report, summary
from flatten_transformer.training.cli import TrainingCLI, train
from flatten_transformer.training.history import History

NAME = "vit_tiny_patch16_224"
SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A softmax model with attention far from uniform."""
    torch.manual_seed(0)
    model = build_model(NAME, SIZES, 10, 1)
    for name, parameter in model.named_parameters():
        if "qkv.weight" in name or "head" in name:
            nn.init.normal_(parameter, std=0.4)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_model(path, model, ModelInfo(NAME, SIZES, CLASSES, Preprocessing(16, 1, (0.5,), (0.5,))))
    return path


def make(teacher_file: Path, **options: Any) -> DistillationTask:
    return DistillationTask(NAME, SIZES, **{"pretrained": teacher_file, "num_classes": 10, "in_chans": 1, **options}).double()


def images() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 1, 16, 16, dtype=torch.float64), torch.arange(6) % 10, torch.arange(6)


def loss(task: DistillationTask, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return the loss of a training step, without a trainer."""
    monkeypatch.setattr(task, "report_loss", lambda value, batch, batch_idx: value)
    return task.training_step(images(), 0)


# losses -----------------------------------------------------------------------------------------------------------------


def test_a_student_begins_as_the_linear_form_of_its_teacher(teacher_file: Path) -> None:
    task, (teacher, _) = make(teacher_file), load_model(teacher_file)
    x = images()[0]
    torch.testing.assert_close(task.teacher(x), teacher.double()(x), rtol=0, atol=0)
    torch.testing.assert_close(task.model.eval()(x), linearize(teacher)(x), rtol=0, atol=0)


def test_stage_1_is_the_mean_error_of_the_attentions_on_the_teachers_inputs_and_trains_them_alone(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(teacher_file, stage=1)
    wanted = block_errors(task.teacher, task.model, images()[0])
    came = loss(task, monkeypatch)
    torch.testing.assert_close(came, torch.tensor(list(wanted.values()), dtype=torch.float64).mean())
    came.backward()
    trained = {name for name, parameter in task.model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in task.model.named_parameters() if ".attn." in name}
    assert {"blocks.0.attn.mixer.attention.dwc.weight", "blocks.1.attn.qkv.weight"} <= trained
    assert all(parameter.grad is None for parameter in task.teacher.parameters())


def test_stage_2_is_the_error_of_the_features_and_the_divergence_of_the_classes_and_trains_all(
    teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(teacher_file, stage=2)
    teacher, student, x = task.teacher, copy.deepcopy(task.model), images()[0]
    features, own = teacher.forward_features(x), student.forward_features(x)  # type: ignore[operator]
    ratios = [(a - b).square().sum() / b.square().sum() for a, b in zip(own, features, strict=True)]
    p, q = teacher(x).softmax(1), student(x).softmax(1)
    wanted = torch.stack(ratios).mean() + (p * (p / q).log()).sum(1).mean()
    came = loss(task, monkeypatch)
    torch.testing.assert_close(came, wanted)
    came.backward()
    assert [name for name, parameter in task.model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("match", [0.0, 2.0])
def test_stage_3_is_the_loss_of_the_labels_and_the_error_of_the_attentions_outputs(
    teacher_file: Path, match: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(teacher_file, stage=3, match=match, label_smoothing=0.2)
    outputs: list[Tensor] = []
    student, (x, labels, _) = copy.deepcopy(task.model), images()
    for model in (task.teacher, student):
        for block in model.blocks:  # type: ignore[union-attr]
            block.attn.register_forward_hook(lambda module, args, output: outputs.append(output))
    logits, _ = student(x), task.teacher(x)
    ratios = [((a - b).flatten(1).square().sum(1) / b.flatten(1).square().sum(1)).mean() for a, b in zip(outputs, outputs[2:])]  # noqa: B905
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.2) + match * torch.stack(ratios).mean()
    torch.testing.assert_close(loss(task, monkeypatch), wanted)


def test_a_batch_in_pieces_has_the_same_loss(teacher_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (1, 2, 3):
        task = make(teacher_file, stage=stage)
        monkeypatch.setattr(task, "report_loss", lambda value, batch, batch_idx: value)
        x, labels, indices = images()
        halves = [task.training_step((x[part], labels[part], indices[part]), 0) for part in (slice(3), slice(3, 6))]
        torch.testing.assert_close(sum(halves) / 2, task.training_step((x, labels, indices), 0))


# trainings --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainingCLI]:
    """Train for two epochs of two steps, without pictures."""
    monkeypatch.chdir(tmp_path)
    for module in (summary, class_report):
        monkeypatch.setattr(module, "find_spec", lambda _: None)

    def fit(recipe: str, teacher_file: Path, *options: str) -> TrainingCLI:
        fixed = {"config": recipe, "model.name": NAME, "model.model_args": SIZES, "model.pretrained": teacher_file}
        fixed |= {"data.dataset": "digits", "data.img_size": 16, "data.num_workers": 0, "trainer.max_epochs": 2}
        fixed |= {"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 1, "trainer.accelerator": "cpu"}
        fixed |= {"trainer.enable_progress_bar": "false", "trainer.enable_model_summary": "false"}
        return train("fit", [f"--{name}={value}" for name, value in fixed.items()] + list(options))

    return fit


def state(folder: Path | None) -> dict[str, Tensor]:
    assert folder is not None
    tensors: dict[str, Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return tensors


def test_three_stages_one_after_the_other_leave_a_classifier_and_the_teacher_as_it_was(
    teacher_file: Path, quick: Callable[..., TrainingCLI]
) -> None:
    before = teacher_file.read_bytes()
    first = quick("linearize/stage1", teacher_file)
    assert not [name for name in state(first.folder) if "teacher" in name]
    teacher, _ = load_model(teacher_file)
    student = linearize(teacher).state_dict()
    changed = {name for name, value in student.items() if not torch.equal(value, state(first.folder)[f"model.{name}"])}
    assert changed == {name for name in student if ".attn." in name}

    assert first.folder is not None
    file = first.folder / "checkpoints" / "model.safetensors"
    second = quick("linearize/stage2", teacher_file, f"--model.model_args.checkpoint_path={file}")
    assert second.folder is not None
    file = second.folder / "checkpoints" / "model.safetensors"
    third = quick("linearize/stage3", teacher_file, f"--model.model_args.checkpoint_path={file}")
    assert {"val/agreement", "val/feature_error", "val/accuracy"} <= third.trainer.callback_metrics.keys()
    assert third.folder is not None
    loaded, info = load_model(third.folder / "checkpoints" / "model.safetensors")
    assert info.task == "classify"
    x = images()[0].float()
    torch.testing.assert_close(loaded(x), third.model.final_model.eval()(x))
    assert teacher_file.read_bytes() == before


def test_a_stage_that_was_stopped_ends_with_the_weights_of_an_undisturbed_one(
    teacher_file: Path, quick: Callable[..., TrainingCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = quick("linearize/stage1", teacher_file)
    end: Callable[..., None] = History.on_train_epoch_end

    def stop(*args: Any) -> None:
        end(*args)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_end", stop)
        with pytest.raises(SystemExit):
            quick("linearize/stage1", teacher_file, "--name=stopped")
    resumed = quick("linearize/stage1", teacher_file, "--name=stopped", "--ckpt_path=last")
    wanted, came = state(undisturbed.folder), state(resumed.folder)
    assert [name for name in wanted if not torch.equal(wanted[name], came[name])] == []


def test_images_without_labels_teach_the_first_two_stages_and_no_third(
    teacher_file: Path, quick: Callable[..., TrainingCLI], tmp_path: Path
) -> None:
    for number in range(5):
        path = tmp_path / "images" / f"of {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (50 * number, 0, 0)).save(path)
    alone = ["--data.dataset=images", "--data.root=images", "--data.classes=10", "--data.in_chans=1", "--data.batch_size=2"]
    done = quick("linearize/stage2", teacher_file, *alone)
    metrics = done.trainer.callback_metrics.keys()
    assert {"val/agreement", "val/feature_error"} <= metrics
    assert not [name for name in metrics if "accuracy" in name or "f1" in name]
    with pytest.raises(ValueError, match=r"stage 3 learns from labels, and these images have none: give --data\.dataset folder"):
        quick("linearize/stage3", teacher_file, *alone)


# what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 4}, "stage must be 1, 2 or 3, got 4"),
        ({"match": -1.0}, "match must be at least 0, got -1.0"),
        ({"pretrained": False}, "a student learns from the weights of its teacher: give --model.pretrained teacher.safetensors"),
        ({"num_classes": 7}, "do not fit vit_tiny_patch16_224"),
    ],
)
def test_wrong_options_are_refused(teacher_file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(teacher_file, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "nowhere", "classes": 3}, "no folder nowhere: check data.root"),
        ({"classes": 3}, "images need a folder: give --data.root"),
        ({"root": "."}, "images without labels do not say what the teacher tells apart: give --data.classes, names or a number"),
        ({"root": ".", "classes": 3}, ". holds no images (.bmp"),
        ({"dataset": "digits", "classes": 3}, "the classes are those of digits: leave classes out"),
    ],
)
def test_wrong_images_are_refused(options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        DistillationData(**options)


def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    def fill(folder: str, names: Sequence[str]) -> None:
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{name}.png")

    fill("train", "abc")
    fill("val", "d")
    data = DistillationData(root=tmp_path, classes=["x", "y"])
    data.setup("fit")
    assert (data.count("train"), data.count("val"), list(data.class_names), data.counts("train")) == (3, 1, ["x", "y"], None)
