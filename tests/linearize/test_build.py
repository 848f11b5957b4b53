"""Models of every task by name, linearized by an argument."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flatten_transformer.linearize import LinearMixer, linearize
from flatten_transformer.linearize.build import create_model
from flatten_transformer.tasks.classification.model import build_model
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.detection.model import build_detector
from flatten_transformer.tasks.model_file import ModelInfo, load_model, save_model
from flatten_transformer.tasks.segmentation.model import build_segmenter
from tests.linearize.hosts import PVT, SMALL

pytestmark = pytest.mark.filterwarnings("ignore:the linear SwinTransformer loses:UserWarning")
VIT = {name: value for name, value in SMALL.items() if name != "num_classes"}
PYRAMID = {name: value for name, value in PVT.items() if name != "num_classes"}


def mixers(model: torch.nn.Module) -> int:
    return sum(isinstance(part, LinearMixer) for part in model.modules())


def test_a_classifier_begins_with_softmax_weights_and_is_saved_and_loaded(tmp_path: Path) -> None:
    teacher = build_model("vit_tiny_patch16_224", VIT, 3, 3)
    info = ModelInfo("vit_tiny_patch16_224", VIT, ("a", "b", "c"), Preprocessing(64, 3, (0.5,) * 3, (0.5,) * 3))
    save_model(tmp_path / "teacher.safetensors", teacher, info)
    args: dict[str, Any] = {**VIT, "linearize": {"keep": [1], "attention": "relu"}}
    weights = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "teacher.safetensors"), "num_classes": 3}}
    student = build_model("vit_tiny_patch16_224", {**args, **weights}, 3, 3).eval()
    x = torch.rand(2, 3, 64, 64)
    wanted = linearize(teacher, "relu", keep=[1]).eval()(x)
    torch.testing.assert_close(student(x), wanted, rtol=0, atol=0)
    save_model(tmp_path / "student.safetensors", student, ModelInfo(info.name, args, info.class_names, info.preprocessing))
    loaded, described = load_model(tmp_path / "student.safetensors")
    assert described.model_args["linearize"] == {"keep": [1], "attention": "relu"}
    torch.testing.assert_close(loaded(x), wanted, rtol=0, atol=0)


def test_detectors_and_segmenters_stand_on_linearized_backbones() -> None:
    args: dict[str, Any] = {"backbone": "pvt_v2_b0", "backbone_args": {**PYRAMID, "linearize": True}}
    assert mixers(build_segmenter("semantic_fpn", {**args, "decoder_channels": 128}, 2, 3)) == 4
    assert mixers(build_detector("retinanet", args, 2, 3)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atention": "relu"}, "linearize has no option 'atention': did you mean attention or attention_args?"),
        ("relu", 'linearize must be true or hold options by name, such as {"attention": "relu"}, got \'relu\''),
        ({"keep": "auto"}, "keep='auto' chooses blocks by their errors"),
    ],
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create_model("vit_tiny_patch16_224", **SMALL, linearize=options)
