"""Errors about weights: Python's names Python's arguments, the command line's its options, each in one line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.tasks.detection.model import build_detector
from flatten_transformer.tasks.segmentation.model import build_segmenter

DEIT, PVT = "flatten_deit_tiny_patch16_224", "flatten_pvt_v2_b0"
BACKBONE = {"backbone": PVT, "backbone_args": {"pretrained": True}}
OF_A_MODEL = "leave --model.pretrained out, give a file by --model.pretrained weights.safetensors, or "
OF_A_BACKBONE = (
    "leave --model.model_args.backbone_args.pretrained out, "
    "give a file by --model.model_args.backbone_args.checkpoint_path weights.safetensors, or "
)
IN_PYTHON = "leave pretrained out, take a file with pretrained_cfg_overlay={'file': path}, or "


def classify(name: str, **options: Any) -> ClassificationTask:
    return ClassificationTask(name, num_classes=10, in_chans=3, **options)


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


WITHOUT_A_NETWORK: dict[str, tuple[Callable[[], Any], str]] = {
    "Python": (lambda: timm.create_model(PVT, pretrained=True), IN_PYTHON),
    "a classifier": (lambda: classify(PVT, pretrained=True), OF_A_MODEL),
    "a detector": (lambda: build_detector("mask_rcnn", BACKBONE, 2, 3), OF_A_BACKBONE),
    "a segmenter": (lambda: build_segmenter("semantic_fpn", BACKBONE, 2, 3), OF_A_BACKBONE),
}


@pytest.mark.parametrize("door", WITHOUT_A_NETWORK)
def test_without_a_network_each_door_has_its_own_cure(door: str) -> None:
    build, cure = WITHOUT_A_NETWORK[door]
    with pytest.raises(ConnectionError, match=re.escape(f"(no route to host): {cure}try again later")) as refused:
        build()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("build", "cure"), [(lambda: timm.create_model(DEIT, True), IN_PYTHON), (lambda: classify(DEIT, pretrained=True), OF_A_MODEL)]
)
def test_where_nothing_was_published_each_door_has_its_own_cure(build: Callable[[], Any], cure: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no weights were published for {DEIT}: {cure}choose one of flatten_")):
        build()


def test_models_of_timm_without_weights_have_the_same_cure() -> None:
    with pytest.raises(ValueError, match=re.escape(f"no weights were published for vit_small_patch16_18x2_224: {OF_A_MODEL}")):
        classify("vit_small_patch16_18x2_224", pretrained=True)


def test_a_hub_out_of_reach_has_the_same_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        try:
            raise OSError("[Errno 111] Connection\nrefused")
        except OSError as error:
            raise LocalEntryNotFoundError("we cannot find the requested files") from error

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    message = f"the weights of resnet18 cannot be fetched ([Errno 111] Connection refused): {OF_A_MODEL}"
    with pytest.raises(ConnectionError, match=re.escape(message)):
        classify("resnet18", pretrained=True)


def test_softmax_weights_for_another_layout_are_refused_with_the_options_to_add(tmp_path: Path) -> None:
    small, path = {"depth": 1, "img_size": 64}, tmp_path / "vit.safetensors"
    state = timm.create_model("vit_tiny_patch16_224", **small).state_dict()
    save_file(state, path)
    cure = "add --model.model_args.class_token true --model.model_args.global_pool token"
    with pytest.raises(ValueError, match=re.escape(f"this model has no class token and the norm after pooling: {cure}")):
        classify(DEIT, model_args=small, pretrained=path)
    with pytest.raises(ValueError, match=re.escape(cure)):
        classify(DEIT, model_args=small | {"checkpoint_path": str(path)})
    args = small | {"class_token": True, "global_pool": "token"}
    model = classify(DEIT, model_args=args, pretrained=path).model
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(model.state_dict()[key], state[key])
    with pytest.raises(ValueError, match=r"begin with weights of softmax attention, give --model\.pretrained .*vit\.safetensors"):
        ClassificationTask(DEIT, args | {"checkpoint_path": str(path)}, num_classes=1000, in_chans=3)
