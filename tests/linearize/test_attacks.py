"""linearize, and its command, in the hands of others: models of odd kinds, wrong options, files that are something else."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention
from torch import nn

from flatten_transformer.cli import main
from flatten_transformer.linearize import block_errors, linearize
from flatten_transformer.tasks.classification.model import build_model, weights_args
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.distillation.task import DistillationTask
from flatten_transformer.tasks.model_file import ModelInfo, save_model
from tests.linearize.hosts import DYNAMIC, HOSTS, SMALL

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}


class Mine(Attention):
    """An attention of one's own that attends as its parent does."""

    def doubled(self) -> int:
        return 2 * self.num_heads


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**SMALL, **options}).eval()


# models of odd kinds ----------------------------------------------------------------------------------------------------------


def test_a_subclass_without_a_forward_of_its_own_becomes_linear_and_keeps_what_it_adds() -> None:
    teacher, plain = vit(), vit()
    for block in teacher.blocks:
        block.attn.__class__ = Mine
    student = linearize(teacher)
    x = torch.randn(2, 3, 64, 64)
    wanted = linearize(plain)(x)
    for model in (student, copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(model(x), wanted)
        assert isinstance(model.blocks[0].attn, Mine)
        assert model.blocks[0].attn.doubled() == 4
    assert type(student.blocks[0].attn) is type(student.blocks[1].attn)
    assert type(teacher.blocks[0].attn) is Mine


def test_a_parametrized_attention_becomes_linear() -> None:
    attention = nn.MultiheadAttention(32, 2, batch_first=True)
    nn.utils.parametrizations.orthogonal(attention, "in_proj_weight")
    student = linearize(attention, grid_size=(5,), num_prefix_tokens=0)
    x = torch.randn(1, 5, 32)
    fixed = nn.MultiheadAttention(32, 2, batch_first=True)
    fixed.load_state_dict({**attention.state_dict(), "in_proj_weight": attention.in_proj_weight}, strict=False)
    wanted = linearize(fixed, grid_size=(5,), num_prefix_tokens=0)
    torch.testing.assert_close(student(x, x, x)[0], wanted(x, x, x)[0])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_student_gives_what_it_gave() -> None:
    student = linearize(vit(**DYNAMIC))
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(torch.jit.trace(student, x)(x), student(x))
    copy.deepcopy(student)
    student(torch.randn(1, 3, 32, 32))


def test_errors_of_outputs_in_half_precision_do_not_overflow() -> None:
    teacher = vit()
    for block in teacher.blocks:
        block.attn.proj.weight.data.mul_(50)
        nn.init.constant_(block.attn.proj.bias, 20.0)
    wanted = block_errors(teacher, linearize(teacher), x := torch.randn(8, 3, 64, 64))
    came = block_errors(half := teacher.half(), linearize(half), x.half())
    assert came == pytest.approx(wanted, rel=0.1)


# wrong options ----------------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "centred": ({"center_keys": "maybe"}, "center_keys must be true or false, got 'maybe'"),
    "convolved": ({"convolve_queries_keys": 3}, "convolve_queries_keys must be true or false, got 3"),
    "window of words": ({"local_window": "x"}, "local_window must be odd and positive, such as 3, got 'x'"),
    "window between": ({"local_window": 1.5}, "local_window must be odd and positive, such as 3, got 1.5"),
    "prefix": ({"num_prefix_tokens": "x"}, "num_prefix_tokens must be a whole number, got 'x'"),
    "list": ({"attention_args": [1]}, r"attention_args must hold options by name, such as .*, got \[1\]"),
    "taken": ({"attention_args": {"projections": True}}, "attention_args must not hold projections: the model says it"),
    "kernel": ({"attention_args": {"kernel_size": "x"}}, "kernel_size must be odd and positive, .*, got 'x'"),
    "stretch": (
        {"attention": "agent", "attention_args": {"num_agents": "x"}},
        "attention_args {'num_agents': 'x'} do not fit agent",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_named_in_one_line(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as raised:
        linearize(HOSTS["vit"].teacher(), **options)
    assert "\n" not in str(raised.value)


# files ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    info = ModelInfo("vit_tiny_patch16_224", VIT, [f"{digit}" for digit in range(10)], Preprocessing(32, 1, (0.5,), (0.5,)))
    save_model(path := tmp_path / "teacher.safetensors", build_model(info.name, VIT, 10, 1), info)
    return path


@pytest.fixture
def student(teacher: Path) -> Path:
    args = {**VIT, "linearize": {}}
    info = ModelInfo("vit_tiny_patch16_224", args, ("a", "b"), Preprocessing(32, 1, (0.5,), (0.5,)))
    model = build_model(info.name, args, 2, 1)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    save_model(path := teacher.with_name("student.safetensors"), model, info)
    return path


def test_a_student_is_fine_tuned_on_other_classes_with_all_of_its_weights_but_the_head(student: Path) -> None:
    args = {**VIT, "linearize": {}}
    wanted = build_model("vit_tiny_patch16_224", {**args, "checkpoint_path": str(student)}, 2, 1).state_dict()
    came = build_model("vit_tiny_patch16_224", {**args, **weights_args(student)}, 7, 1).state_dict()
    assert {name for name, value in came.items() if not torch.equal(value, wanted[name])} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("form", [False, {"attention": "relu"}, {"keep": [0]}], ids=str)
def test_a_student_is_not_taken_for_a_model_of_another_form(student: Path, form: Any) -> None:
    with pytest.raises(ValueError, match=r"student\.safetensors is a linear student, of another form than this model"):
        build_model("vit_tiny_patch16_224", {**VIT, "linearize": form, **weights_args(student)}, 2, 1)


def test_there_is_nothing_to_distil_where_all_stays_softmax(teacher: Path) -> None:
    args = {**VIT, "linearize": {"keep": 2}}
    with pytest.raises(ValueError, match="all attentions stay softmax, so there is nothing to distil: keep fewer blocks"):
        DistillationTask("vit_tiny_patch16_224", args, pretrained=teacher, num_classes=10, in_chans=1)


ERRORS: dict[str, tuple[list[str], str]] = {
    "unknown option": (["--options", "{atention: relu}"], "linearize has no option 'atention': did you mean"),
    "own place": (["--options", "{attention: relu}"], "attention is no further option of linearize: give --attention"),
    "own place of keep": (["--options", "{keep: [0]}"], "keep is no further option of linearize: give --keep"),
    "images": (["--options", "{images: 3}"], "linearize has no option 'images'"),
    "sizes": (["--sizes", "[0]"], "--sizes must hold sides in pixels, such as [224, 512], or nothing, [], got [0]"),
    "img_size": (["--img_size", "1000000"], "--img_size must be at most 8192 pixels, got 1000000"),
    "classes": (["--data.classes", "4"], "--data.classes is 4, and the teacher tells 10 classes apart: leave it out"),
    "all kept": (["--keep", "2"], "all attentions stay softmax, so there is nothing to distil: keep fewer blocks"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_the_command_refuses_in_one_line(
    case: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = ERRORS[case]
    monkeypatch.chdir(tmp_path)
    assert main(["linearize", "--weights", str(teacher), "--data.dataset", "digits", "--data.num_workers", "0", *arguments]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"flatten: error: {message}")


@pytest.mark.parametrize("name", ["junk.pth", "junk.safetensors"])
def test_a_file_that_holds_no_weights_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"junk")
    arguments = ["--model", "vit_tiny_patch16_224", "--model_args", "{depth: 1}", "--weights", name, "--data.dataset", "digits"]
    assert main(["linearize", *arguments, "--data.classes", "10"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("flatten: error: ")
    assert name in last
    assert "model_args" not in last
