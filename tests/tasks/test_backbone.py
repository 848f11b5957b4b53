from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flatten_transformer.tasks.backbone import load_backbone, plain_model

PVT: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1), "img_size": 64}
SWIN: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1), "img_size": 64}
CASES = [
    ("flatten_pvt_tiny", PVT),
    ("flatten_pvt_v2_b0", PVT),
    ("flatten_swin_tiny_patch4_224", SWIN),
    ("flatten_cswin_tiny_224", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 1, 1), "img_size": 64}),
    ("resnet18", {}),
]


def saved(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, folder / "classifier.safetensors")
    return folder / "classifier.safetensors"


def features(name: str, args: dict[str, Any]) -> nn.Module:
    model: nn.Module = timm.create_model(name, features_only=True, **args)
    return model


@pytest.mark.parametrize(("name", "args"), CASES, ids=[name for name, _ in CASES])
def test_a_backbone_computes_what_the_classifier_does_after_loading(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    classifier = timm.create_model(name, num_classes=5, **args).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_(std=0.3)
    backbone = features(name, args).eval()
    report = load_backbone(backbone, name, args, saved(classifier.state_dict(), tmp_path))
    assert set(report.loaded) == set(backbone.state_dict())
    assert report.missing == report.misshapen == []
    images = torch.rand(1, 3, 64, 96)
    wanted = classifier.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    for came, map_ in zip(backbone(images), wanted, strict=True):
        torch.testing.assert_close(came, map_, rtol=0, atol=0)


def test_encodings_of_another_size_are_resized(tmp_path: Path) -> None:
    classifier = timm.create_model("flatten_pvt_tiny", num_classes=5, **(PVT | {"img_size": 32}))
    report = load_backbone(features("flatten_pvt_tiny", PVT), "flatten_pvt_tiny", PVT, saved(classifier.state_dict(), tmp_path))
    assert report.missing == report.misshapen == report.unused == []


def test_weights_that_match_nothing_are_an_error(tmp_path: Path) -> None:
    path = saved(timm.create_model("resnet18", num_classes=5).state_dict(), tmp_path)
    with pytest.raises(
        ValueError, match=r"no tensor of .*classifier.safetensors fits the backbone flatten_pvt_tiny \(the file's"
    ):
        load_backbone(features("flatten_pvt_tiny", PVT), "flatten_pvt_tiny", PVT, path)


def test_what_matches_partly_is_reported_tensor_by_tensor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = plain_model("flatten_pvt_tiny", PVT).state_dict()
    del tensors["stages.1.patch_embed.norm.weight"]
    tensors["stages.0.blocks.0.norm1.bias"] = torch.zeros(3)
    tensors["stages.9.extra"] = torch.zeros(3)
    backbone = features("flatten_pvt_tiny", PVT)
    with caplog.at_level("INFO"):
        report = load_backbone(backbone, "flatten_pvt_tiny", PVT, saved(tensors, tmp_path))
    assert (report.missing, report.misshapen, report.unused) == (
        ["stages_1.patch_embed.norm.weight"],
        ["stages_0.blocks.0.norm1.bias"],
        ["stages.9.extra"],
    )
    total = len(backbone.state_dict())
    assert f"{total - 2} of its {total} tensors" in caplog.text
    for line in (
        "stages_1.patch_embed.norm.weight: not in",
        "stages_0.blocks.0.norm1.bias: of another",
        "stages.9.extra: not used",
    ):
        assert line in caplog.text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*absent"):
        load_backbone(features("flatten_pvt_tiny", PVT), "flatten_pvt_tiny", PVT, tmp_path / "absent.pth")
