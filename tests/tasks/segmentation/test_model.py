from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from flatten_transformer.models.cost import count_parameters
from flatten_transformer.tasks.optimization import Optimization
from flatten_transformer.tasks.segmentation.model import SEGMENTERS, Segmenter, build_segmenter
from tests.tasks.segmentation.conftest import PVT, TINY

SWIN = {"depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 1, 2, 2], "img_size": 64}
CSWIN = {"depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [2, 4, 8, 16], "img_size": 64}
BACKBONES = [
    ("flatten_pvt_tiny", PVT),
    ("flatten_pvt_v2_b0", PVT),
    ("flatten_swin_tiny_patch4_224", SWIN),
    ("flatten_cswin_tiny_224", CSWIN),
    ("swin_tiny_patch4_window7_224", SWIN | {"strict_img_size": False}),
    ("resnet10t", {}),
]


def build(name: str = "semantic_fpn", **changes: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(name, TINY | changes, num_classes=5, in_chans=3).eval()


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize(("backbone", "args"), BACKBONES, ids=[name for name, _ in BACKBONES])
@torch.no_grad()
def test_any_pyramid_segments_images_of_any_size(name: str, backbone: str, args: dict[str, Any]) -> None:
    model = build(name, backbone=backbone, backbone_args=args)
    for height, width in ((64, 96), (33, 100), (20, 20)):
        logits = model(torch.rand(2, 3, height, width))
        assert logits.shape == (2, 5, height, width)
        assert logits.isfinite().all()


@torch.no_grad()
def test_an_image_of_another_size_is_stretched_and_never_padded() -> None:
    model, image = build(), torch.rand(1, 3, 50, 70)
    stretched = F.interpolate(image, (64, 96), mode="bilinear", align_corners=False)
    coarse = model.head(model.decoder(model.encoder(stretched)))
    torch.testing.assert_close(model(image), F.interpolate(coarse, (50, 70), mode="bilinear", align_corners=False))


@torch.no_grad()
def test_an_image_is_seen_the_same_alone_and_beside_others() -> None:
    model, images = build("upernet"), torch.rand(3, 3, 40, 70)
    together = model(images)
    for image, logits in zip(images, together, strict=True):
        torch.testing.assert_close(model(image[None])[0], logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_auxiliary_head_reads_the_third_stage() -> None:
    for name, channels in (("semantic_fpn", None), ("upernet", None), ("semantic_fpn", 16), ("upernet", 0)):
        model = build(name, aux_channels=channels)
        images = torch.rand(2, 3, 64, 64)
        logits, auxiliary = model.with_auxiliary(images)
        torch.testing.assert_close(logits, model(images))
        assert (auxiliary is None) == ((name, channels) in (("semantic_fpn", None), ("upernet", 0)))
        if auxiliary is not None:
            assert model.auxiliary is not None
            coarse = model.auxiliary(model.encoder(images)[-2])
            assert coarse.shape == (2, 5, 4, 4)
            assert auxiliary.shape == logits.shape


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_training_begins_with_all_classes_alike(name: str) -> None:
    assert build(name)(torch.randn(2, 3, 64, 64)).std() < 0.3  # 3.0 with the values of segmentation_models_pytorch


def test_every_argument_changes_the_model() -> None:
    sizes = [
        count_parameters(build(**change))
        for change in ({}, {"decoder_channels": 192}, {"aux_channels": 8}, {"backbone_args": PVT | {"depths": [1, 1, 1, 2]}})
    ]
    assert len(set(sizes)) == 4
    assert build_segmenter("semantic_fpn", TINY, 5, 1).eval()(torch.rand(1, 1, 32, 32)).shape == (1, 5, 32, 32)


@pytest.mark.parametrize(("backbone", "args"), BACKBONES[:4], ids=[name for name, _ in BACKBONES[:4]])
def test_weights_of_a_classifier_can_be_begun_with(backbone: str, args: dict[str, Any], tmp_path: Path) -> None:
    classifier = timm.create_model(backbone, num_classes=7, **args)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_(std=0.3)
    save_file({key: value.contiguous() for key, value in classifier.state_dict().items()}, tmp_path / "w.safetensors")
    given = args | {"checkpoint_path": str(tmp_path / "w.safetensors")}
    model = build(backbone=backbone, backbone_args=given)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = classifier.eval().forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
        for came, map_ in zip(model.encoder(images)[-4:], wanted, strict=True):
            torch.testing.assert_close(came, map_, rtol=1e-5, atol=1e-5)
    fresh = build(backbone=backbone, backbone_args=given, pretrained=False)
    assert any((a != b).any() for a, b in zip(fresh.encoder.parameters(), model.encoder.parameters(), strict=True))


def test_weights_that_match_nothing_are_an_error(tmp_path: Path) -> None:
    save_file({"nothing": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"no tensor of .* fits the backbone flatten_pvt_v2_b0"):
        build(backbone_args=PVT | {"checkpoint_path": str(tmp_path / "w.safetensors")})


def test_biases_norms_and_what_the_backbone_spares_do_not_decay() -> None:
    model = build(backbone="flatten_swin_tiny_patch4_224", backbone_args=SWIN | {"attn_types": "LLSS"})
    groups = Optimization(weight_decay=0.3).optimizer(model, batch_size=1).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    tables = [name for name, _ in model.named_parameters() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 2
    for name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or name.endswith(".bias") or name in tables
        assert decay[id(parameter)] == (0 if spared else 0.3), name


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("upper_net", TINY, "no segmenter 'upper_net': did you mean upernet"),
        ("upernet", {}, "upernet needs a backbone in model_args"),
        ("upernet", TINY | {"backbones": 1}, "upernet takes no 'backbones' in model_args: did you mean backbone"),
        (
            "upernet",
            TINY | {"backbone": "flaten_pvt_tiny"},
            "timm knows no backbone 'flaten_pvt_tiny': did you mean flatten_pvt_tiny",
        ),
        (
            "upernet",
            TINY | {"backbone_args": {"dpths": 1}},
            "backbone_args do not fit flatten_pvt_v2_b0: .*'dpths': leave it out",
        ),
        ("upernet", {"backbone": "flatten_deit_tiny_patch16_224"}, "gives no maps at 1/4, 1/8, 1/16 and 1/32 .*take a pyramid"),
        ("upernet", TINY | {"decoder_channels": 100}, "decoder_channels must be a multiple of 64 and at least 128, got 100"),
        ("upernet", TINY | {"aux_channels": -1}, "aux_channels must be at least 1, or 0 for no auxiliary head, got -1"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_segmenter(name, args, 5, 3)


def test_flatten_backbones_run_at_the_papers_size() -> None:
    for backbone, args in BACKBONES[:4]:
        with torch.device("meta"):
            model: nn.Module = build_segmenter("semantic_fpn", TINY | {"backbone": backbone, "backbone_args": args}, 5, 3)
            assert model(torch.rand(1, 3, 512, 2048)).shape == (1, 5, 512, 2048)
