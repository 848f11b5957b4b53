"""FLatten-PVT: the authors' numbers, official files, any size, and timm's contract."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from flatten_transformer.models.checkpoint import checkpoint_filter_fn
from tests.helpers import relative_error
from tests.models.pyramids import SMALL, authors, official, small

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"sr_ratios": (8, 4, 2, 1)},
    {"sr_ratios": (8, 4, 2, 1), "stretch": "tokens"},
    {"attn_types": "LLSS"},
    {"attn_types": "S"},
]


def create(layout: dict[str, Any], **kwargs: Any) -> Any:
    return timm.create_model("flatten_pvt_tiny", **(SMALL | {"num_classes": 1000} | layout | kwargs)).eval()


def test_spatial_reduction_gives_the_authors_scores() -> None:
    weights, images, scores, parameters = authors("flatten_pvt_t_sr8421")
    model = timm.create_model("flatten_pvt_tiny", sr_ratios=(8, 4, 2, 1), stretch="tokens").double().eval()
    model.load_state_dict(checkpoint_filter_fn({"model": weights}, model))
    with torch.no_grad():
        assert relative_error(model(images[:1]), scores[:1]) < 1e-13  # measured: 1.5e-15
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("flatten_pvt_tiny", 12.15),
        ("flatten_pvt_small", 21.67),
        ("flatten_pvt_medium", 37.24),
        ("flatten_pvt_large", 50.65),
    ],
)
def test_parameters_count_as_published(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def test_the_softmax_twin_counts_as_pvt() -> None:
    with torch.device("meta"):
        model = timm.create_model("flatten_pvt_tiny", attn_types="SSSS", sr_ratios=(8, 4, 2, 1))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 13.2  # as PVT's paper has it


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_size_passes_and_leaves_the_training_size_as_it_was(layout: dict[str, Any]) -> None:
    model = small("flatten_pvt_tiny", **layout)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for size in [(32, 48), (53, 91), (3, 7), (96, 136)]:
            assert model(torch.randn(1, 3, *size)).isfinite().all()
        assert torch.equal(model(images), before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_official_files_load_by_both_of_timms_routes(layout: dict[str, Any], tmp_path: Path) -> None:
    trained = small("flatten_pvt_tiny", **layout, num_classes=1000)
    file = tmp_path / "official.pth"
    torch.save({"model": official(trained), "epoch": 300}, file)
    images = torch.randn(2, 3, 50, 70)
    for route in ({"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}, {"checkpoint_path": str(file)}):
        assert torch.equal(create(layout, **route)(images), trained(images))


def test_weights_of_one_size_load_into_another_size_other_classes_and_channels(tmp_path: Path) -> None:
    layout = {"sr_ratios": (8, 4, 2, 1)}
    trained = small("flatten_pvt_tiny", **layout, num_classes=1000)
    file = tmp_path / "official.pth"
    torch.save({"model": official(trained)}, file)
    route = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    larger = create(layout, **route, img_size=(96, 128))
    images = torch.randn(1, 3, 96, 128)
    torch.testing.assert_close(larger(images), trained(images))  # resized once at loading, or at each call
    assert create(layout, **route, num_classes=3)(images).shape == (1, 3)
    assert create(layout, **route, in_chans=1)(images[:, :1]).shape == (1, 1000)


def test_encodings_resized_for_good_give_what_resizing_at_each_call_gives() -> None:
    model = small("flatten_pvt_tiny", sr_ratios=(8, 4, 2, 1))
    images = torch.randn(1, 3, 96, 70)
    before = model(images)
    model.set_input_size((96, 70))  # type: ignore[operator]
    torch.testing.assert_close(model(images), before)


def test_official_names_load_into_the_model_as_a_part_and_after_a_copy() -> None:
    trained = small("flatten_pvt_tiny", sr_ratios=2)
    whole = nn.ModuleDict({"backbone": deepcopy(small("flatten_pvt_tiny", sr_ratios=2))})
    whole.load_state_dict({f"backbone.{name}": value for name, value in official(trained).items()})
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(whole["backbone"](images), trained(images))


def test_a_stranger_among_the_weights_is_named() -> None:
    model = small("flatten_pvt_tiny")
    weights = official(model)
    weights["cls_token"] = torch.zeros(1, 1, 32)
    with pytest.raises(ValueError, match="1 unexpected \\(first: cls_token\\)"):
        checkpoint_filter_fn(weights, model)
    with pytest.raises(RuntimeError, match="cls_token"):
        model.load_state_dict(weights)
    assert model.load_state_dict(weights, strict=False).unexpected_keys == ["cls_token"]


def test_every_stage_hands_out_its_features_rounded_up() -> None:
    images = torch.randn(1, 3, 50, 70)
    model = small("flatten_pvt_tiny", features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]  # type: ignore[operator, union-attr]
    assert [tuple(level.shape[1:]) for level in model(images)] == [(8, 13, 18), (16, 7, 9), (24, 4, 5), (32, 2, 3)]


def test_intermediates_are_the_stages() -> None:
    model: Any = small("flatten_pvt_tiny")
    images = torch.randn(1, 3, 50, 70)
    last, levels = model.forward_intermediates(images)
    assert torch.equal(last, model.forward_features(images))
    assert torch.equal(last, levels[-1])
    early = model.forward_intermediates(images, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert all(torch.equal(level, wanted) for level, wanted in zip(early, levels[:2], strict=True))
    with pytest.raises(ValueError, match="output_fmt must be"):
        model.forward_intermediates(images, output_fmt="NHWC")
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert torch.equal(model(images), levels[1])


def test_the_norm_that_is_never_applied_asks_for_no_gradient() -> None:
    model = small("flatten_pvt_tiny")
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == {"norm.weight", "norm.bias"}
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {"norm.weight", "norm.bias"}


def test_recomputed_blocks_give_the_same_gradients() -> None:
    model: Any = small("flatten_pvt_tiny", sr_ratios=(8, 4, 2, 1))
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        images = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64).requires_grad_()
        gradients.append(torch.autograd.grad(model(images).square().sum(), images)[0])
    assert torch.equal(*gradients)


def test_layers_are_grouped_from_the_stem_to_the_classifier() -> None:
    model: Any = small("flatten_pvt_tiny")
    groups = list(group_parameters(model, model.group_matcher()).values())
    assert len(groups) == 1 + 5 + 1  # stem, blocks, classifier
    assert groups[0] == [name for name, _ in model.named_parameters() if name.startswith("stages.0.p")]
    assert {"head.weight", "head.bias"} < set(groups[-1])
    assert len(group_parameters(model, model.group_matcher(coarse=True))) == 1 + 4 + 1
    assert model.no_weight_decay() == set()


def test_the_classifier_can_be_exchanged_and_removed() -> None:
    model: Any = small("flatten_pvt_tiny").double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    model.reset_classifier(7)
    assert model(images).shape == (1, 7)
    assert model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(0)
    assert torch.equal(model(images), model.forward_head(model.forward_features(images), pre_logits=True))
    model.reset_classifier(0, "")
    assert model(images).shape == (1, 32, 2, 2)


@pytest.mark.parametrize(
    "option",
    [
        {"drop_rate": 0.5},
        {"pos_drop_rate": 0.5},
        {"proj_drop_rate": 0.5},
        {"attn_drop_rate": 0.5},
        {"drop_path_rate": 0.5},
        {"focusing_factor": 4.0},
        {"stretch": "tokens"},
        {"attn_types": "SSSS"},
    ],
    ids=str,
)
def test_every_option_changes_the_result(option: dict[str, Any]) -> None:
    layout: dict[str, Any] = {"sr_ratios": (4, 2, 1, 1), "attn_types": "LSLS"}
    plain, other = small("flatten_pvt_tiny", **layout), small("flatten_pvt_tiny", **(layout | option))
    other.load_state_dict(plain.state_dict(), strict="attn_types" not in option)
    images = torch.randn(4, 3, 64, 64)
    assert not torch.allclose(plain.train()(images), other.train()(images))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attn_types": "LLX"}, "attn_types must be"),
        ({"attn_types": "LLLX"}, "attn_types must be"),
        ({"sr_ratios": (8, 4)}, "sr_ratios must be"),
        ({"attn_drop_rate": 0.1}, "attn_drop_rate acts on"),
        ({"global_pool": "token"}, "global_pool must be"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"focusing_factor": 0.5}, "focusing_factor must be"),
        ({"stretch": "rows"}, "stretch must be"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_in_words(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("flatten_pvt_tiny", **option)
