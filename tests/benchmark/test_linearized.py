"""What is said of a model that was turned linear: errors, agreement, times; tables, files, pictures. No test asserts a speed."""

import copy
import functools
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from rich.console import Console
from torch import Tensor, nn

from flatten_transformer.benchmark.linearized import Judgement, judge
from flatten_transformer.benchmark.linearized_picture import errors_figure, times_figure
from flatten_transformer.benchmark.linearized_report import Linearized, tables, to_json, write
from flatten_transformer.benchmark.linearized_times import STUDENT, TEACHER, at_size, crossing, measure_times
from flatten_transformer.benchmark.machine import Header, describe
from flatten_transformer.benchmark.race import FORWARD, Limits
from flatten_transformer.benchmark.report import Point
from flatten_transformer.benchmark.timing import Spread
from flatten_transformer.linearize import block_errors, linearize
from tests.linearize.hosts import HOSTS

NO_TIME = Limits(budget_s=0.0, max_rounds=1)
BLOCKS = ["blocks.0.attn", "blocks.1.attn"]


def vit(**args: Any) -> nn.Module:
    torch.manual_seed(0)
    small = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5, "in_chans": 1}
    model = timm.create_model("vit_tiny_patch16_224", **{**small, "patch_size": 8, **args})
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)  # attention that is far from uniform, and classes that differ
    return model.double()


def features(model: Any, images: Tensor) -> Tensor:
    found: Tensor = model.forward_features(images)
    return found


def batches(*sizes: int, labelled: bool = True) -> list[tuple[Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 1, 32, 32, generator=generator) * (1 + size),
            torch.randint(5, (size,), generator=generator) if labelled else None,
        )
        for size in sizes
    ]


def test_errors_and_shares_are_of_all_images_whatever_the_batches() -> None:
    teacher = vit()
    student, parts = linearize(teacher), batches(1, 6)
    images, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts if part[1] is not None])
    judged = judge(teacher, {"student": student}, parts)["student"]
    images = images.double()
    assert judged.images == 7
    assert judged.blocks == pytest.approx(block_errors(teacher, student, images), rel=1e-12)
    with torch.no_grad():
        wanted, came = features(teacher.eval(), images), features(student.eval(), images)
        classes, own = teacher(images).argmax(1), student(images).argmax(1)
    ratios = [float((a - b).square().sum() / b.square().sum()) for a, b in zip(came, wanted, strict=True)]
    assert judged.features == pytest.approx(sum(ratios) / 7, rel=1e-12)
    shares = [float((own == classes).double().mean()), *(float((each == labels).double().mean()) for each in (own, classes))]
    assert [judged.agreement, judged.accuracy, judged.teacher_accuracy] == shares
    assert 0 < shares[0] < 1


def test_a_student_that_kept_all_of_its_teacher_is_its_teacher() -> None:
    teacher = vit()
    judged = judge(teacher, {"all": linearize(teacher, keep=2), "none": linearize(teacher)}, batches(4, labelled=False))
    assert judged["all"] == Judgement(4, {}, 0.0, 1.0, None, None)
    assert list(judged["none"].blocks) == BLOCKS


def test_images_without_labels_do_not_count_in_accuracies() -> None:
    teacher = vit()
    one, other = batches(3, 4)
    mixed = judge(teacher, {"": linearize(teacher)}, [one, (other[0], None)])[""]
    alone = judge(teacher, {"": linearize(teacher)}, [one])[""]
    assert (mixed.accuracy, mixed.teacher_accuracy) == (alone.accuracy, alone.teacher_accuracy)
    assert (mixed.images, alone.images) == (7, 3)


def test_without_its_blocks_a_student_is_judged_alike() -> None:
    teacher = vit()
    students, images = {"focused": linearize(teacher)}, batches(3, 2)
    whole, quick = judge(teacher, students, images)["focused"], judge(teacher, students, images, blocks=False)["focused"]
    assert list(whole.blocks) == BLOCKS
    assert quick == replace(whole, blocks={})


def test_judging_leaves_every_part_of_the_models_as_it_was() -> None:
    teacher = vit(drop_path_rate=0.5)
    student = linearize(teacher)
    teacher.eval().get_submodule("blocks.1").train()
    student.train().get_submodule("blocks.0").eval()
    before = [[part.training for part in model.modules()] for model in (teacher, student)]
    weights = copy.deepcopy(teacher.state_dict())
    first, again = (judge(teacher, {"": student}, batches(4)) for _ in range(2))
    assert first == again  # nothing is dropped
    assert [[part.training for part in model.modules()] for model in (teacher, student)] == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any(part._forward_hooks for part in teacher.get_submodule("blocks").modules())
    assert all(parameter.grad is None for parameter in [*teacher.parameters(), *student.parameters()])


def test_a_model_without_a_classifier_has_features_alone() -> None:
    teacher = vit(num_classes=0)
    judged = judge(teacher, {"": linearize(teacher)}, batches(2))[""]
    assert (judged.agreement, judged.accuracy, judged.teacher_accuracy) == (None, None, None)
    assert judged.features is not None


@pytest.mark.parametrize("name", ["torchvision", "torch"])
def test_a_model_that_is_not_timms_has_errors_of_its_blocks(name: str) -> None:
    host = HOSTS[name]
    teacher = host.teacher()
    judged = judge(teacher, {"": host.student(teacher)}, [(host.inputs()[0], None)])[""]
    assert len(judged.blocks) == 2
    assert judged.features is None
    assert (judged.agreement is None) == (name == "torch")  # whose output has no classes


def test_no_image_to_judge_on_is_said() -> None:
    teacher = vit()
    with pytest.raises(ValueError, match="no image to judge"):
        judge(teacher, {"": linearize(teacher)}, [])


def test_a_model_is_made_for_a_size_without_touching_it() -> None:
    teacher = vit()
    images = torch.randn(1, 1, 64, 64).double()
    for model in (teacher, linearize(teacher)):
        larger = at_size(model, 64)
        assert larger(images).shape == (1, 5)
        with pytest.raises(AssertionError):
            model(images)
        assert larger.training is False
        assert model.training is True


def test_times_are_of_both_models_at_each_size_in_order_and_a_size_too_small_says_why() -> None:
    teacher = vit(patch_size=16)
    points = measure_times(teacher, linearize(teacher), [64, 32, 64, 8], name="vit", batch=2, limits=NO_TIME)
    assert [(p.contender, p.shape["image_px"]) for p in points] == [(who, px) for px in (8, 32, 64) for who in (TEACHER, STUDENT)]
    assert [p.median_us is not None for p in points] == [False, False, True, True, True, True]
    assert all(p.reason is not None and p.reason.startswith("no such size") for p in points[:2])
    assert all(set(p.time_ratios) == {TEACHER} and p.shape["batch"] == 2 and p.dtype == "float64" for p in points[2:])


def test_a_model_of_no_fixed_size_is_timed_as_it_is() -> None:
    host = HOSTS["pvt_v2"]
    teacher = host.teacher()
    assert all(p.median_us for p in measure_times(teacher, host.student(teacher), [64], limits=NO_TIME))


def test_a_model_of_one_size_says_why_it_is_not_timed_at_others() -> None:
    host = HOSTS["torchvision"]
    teacher = host.teacher()
    points = measure_times(teacher, host.student(teacher), [32, 64], limits=NO_TIME)
    assert [p.reason for p in points] == [None, None, *["no such size: Wrong image height! Expected 32 but got 64!"] * 2]


def test_what_was_too_slow_is_not_started_at_larger_sizes() -> None:
    teacher = vit()
    points = measure_times(teacher, linearize(teacher), [32, 64, 96], limits=NO_TIME._replace(call_s=0.0))
    reasons = [str(p.reason) for p in points if p.contender == TEACHER]
    assert reasons[0].startswith("too slow: one call took")
    assert reasons[1:] == [f"{reasons[0]}, already at 32 px"] * 2


def timed(ratios: dict[int, float | None]) -> list[Point]:
    def point(contender: str, size_px: int, ratio: float | None, median_us: float | None) -> Point:
        spread = {} if ratio is None else {TEACHER: Spread(ratio * 0.9, ratio, ratio * 1.1)}
        shape = {"batch": 2, "image_px": size_px}
        reason = None if median_us else "too large: out of memory"
        times: Any = {"median_us": median_us, "q1_us": median_us, "q3_us": median_us}
        return Point("vit", contender, shape, "float32", FORWARD, **times, time_ratios=spread, reason=reason)

    points = []
    for size_px, ratio in ratios.items():
        points.append(point(TEACHER, size_px, ratio and 1.0, 1e4 if ratio else None))
        points.append(point(STUDENT, size_px, ratio, 1e4 * ratio if ratio else None))
    return points


@pytest.mark.parametrize(
    ("ratios", "faster_from_px", "crossing_px", "said"),
    [
        ({256: 2.0, 1024: 0.5}, 1024, 510, "faster from about 510 px on: at 1,024 px it takes 0.50 times"),
        ({224: 0.9, 448: 0.5}, 224, None, "faster at every size timed, from 224 px on; at 448 px it takes 0.50 times"),
        ({224: 1.5, 448: 1.2}, None, None, "not faster: at 448 px it takes 1.20 times"),
        ({224: 1.5, 448: 0.9, 896: 1.1}, None, None, "not faster: at 896 px it takes 1.10 times"),
        ({224: 0.9, 448: 1.1, 896: 0.9}, 896, 620, "faster from about 620 px on"),
        ({224: 1.5, 448: 0.7, 896: None}, 448, 320, "from about 320 px on: at 448 px"),
        ({224: 1.0, 448: 0.7}, 448, None, "from about 448 px on"),
        ({224: 1.5, 448: 1.0}, None, None, "not faster: at 448 px it takes 1.00 times"),
        ({224: None}, None, None, "At no size"),
        ({}, None, None, "At no size"),
    ],
)
def test_the_student_is_faster_from_the_size_on_above_which_it_never_loses(
    ratios: dict[int, float | None], faster_from_px: int | None, crossing_px: int | None, said: str
) -> None:
    turn = crossing(timed(ratios))
    assert (turn.faster_from_px, turn.crossing_px) == (faster_from_px, crossing_px)
    assert said in str(turn)


def judged(scale: float, *, kept: str = "", accuracy: float | None = 0.75) -> Judgement:
    errors = {name: scale * (index + 1) for index, name in enumerate(BLOCKS) if name != kept}
    return Judgement(8, errors, scale, 0.5, accuracy, None if accuracy is None else 0.875)


@functools.cache
def machine() -> Header:
    return describe(torch.device("cpu"))


def report(*, kept: str = "", accuracy: float | None = 0.75, ratios: dict[int, float | None] | None = None) -> Linearized:
    stages = {name: judged(scale, kept=kept, accuracy=accuracy) for name, scale in (("before", 0.5), ("stage 1", 0.01))}
    return Linearized(machine(), "vit", BLOCKS, stages, times=timed(ratios or {}))


def shown(one: Linearized) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(*tables(one), sep="\n")
    return console.export_text()


def test_tables_show_errors_by_block_and_stage_losses_and_what_was_not_timed() -> None:
    text = shown(report(kept=BLOCKS[1], ratios={224: 1.25, 448: 0.5, 896: None}))
    rows = [line.split() for line in text.splitlines()]
    assert ["0", BLOCKS[0], "0.50", "0.010"] in rows
    assert ["1", BLOCKS[1], "softmax", "softmax"] in rows
    assert ["stage", "1", "50.00", "%", "75.00", "%", "0.010"] in rows
    assert ["teacher", "87.50", "%"] in rows
    assert ["224", "px", "5.00", "ms", "6.25", "ms", "1.25", "(1.12-1.38)", "▼"] in rows
    assert ["448", "px", "5.00", "ms", "2.50", "ms", "0.50", "(0.45-0.55)"] in rows
    assert "Not timed: student at 896 px: too large: out of memory." in " ".join(text.split())


def test_without_labels_and_times_nothing_is_said_of_them() -> None:
    text = shown(report(accuracy=None))
    assert "px" not in text
    assert ["before", "50.00", "%", "0.50"] in [line.split() for line in text.splitlines()]
    assert not any(line.split()[:1] == ["teacher"] for line in text.splitlines())


def test_files_hold_every_number_with_the_machine_and_without_any_that_json_does_not_know(tmp_path: Path) -> None:
    one = report(ratios={224: 1.25, 448: 0.5})
    diverged = Judgement(8, {BLOCKS[0]: math.nan, BLOCKS[1]: 0.0}, math.inf, None, None, None)
    one = Linearized(one.header, one.model, one.attentions, {**one.stages, "stage 2": diverged}, times=one.times)
    write(one, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content == json.loads(json.dumps(to_json(one)))
    assert content["stages"]["stage 1"]["blocks"] == {BLOCKS[0]: 0.01, BLOCKS[1]: 0.02}
    assert content["stages"]["stage 2"]["blocks"] == {BLOCKS[0]: None, BLOCKS[1]: 0.0}
    assert content["header"]["torch"] == torch.__version__.partition("+")[0]
    assert content["header"]["timm"] == timm.__version__
    assert content["faster_from_px"] == 448
    assert [time["time_ratios"]["teacher"]["median"] for time in content["times"]] == [1.0, 1.25, 1.0, 0.5]
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "|0  blocks.0.attn |  0.50 |  0.010 |    nan |" in markdown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.png", "report.json", "report.md", "times.png"]


def test_there_is_no_picture_of_times_that_there_are_not(tmp_path: Path) -> None:
    write(report(ratios={224: None}), tmp_path)
    assert "times.png" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not (tmp_path / "times.png").exists()


def test_the_picture_of_errors_has_a_line_a_stage_with_a_gap_where_a_block_stays_softmax() -> None:
    one = report(kept=BLOCKS[0])
    (axis,) = errors_figure(one.model, one.attentions, one.stages).axes
    heights = [np.asarray(line.get_ydata(), float).tolist() for line in axis.lines[:2]]
    assert heights == [[pytest.approx(math.nan, nan_ok=True), 1.0], [pytest.approx(math.nan, nan_ok=True), 0.02]]
    labels = axis.get_legend_handles_labels()[1]
    assert labels[0] == "before: agrees with the teacher on 50.00 %, accuracy 75.00 %"
    assert labels[2:] == ["teacher: accuracy 87.50 %", "stays softmax"]
    one = report(accuracy=None)
    (axis,) = errors_figure(one.model, one.attentions, one.stages).axes
    assert axis.get_legend_handles_labels()[1] == [f"{stage}: agrees with the teacher on 50.00 %" for stage in one.stages]


@pytest.mark.parametrize(
    ("ratios", "said"), [({224: 1.25, 448: 0.5}, ["from about 270 px on\nthe student is faster"]), ({224: 2.0}, [])]
)
def test_the_picture_of_times_marks_the_crossing_if_there_is_one(ratios: dict[int, float | None], said: list[str]) -> None:
    one = report(ratios=ratios)
    (axis,) = times_figure(one.model, one.header, one.times).axes
    assert [text.get_text() for text in axis.texts] == said
    assert [float(np.asarray(line.get_ydata(), float)[0]) for line in axis.lines[:2]] == [5e3, 5e3 * (ratios[224] or 0)]
