"""FLatten-PVTv2: the authors' numbers, timm's model where all is softmax, official files, any size."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

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


def test_b0_gives_the_authors_scores() -> None:
    weights, images, scores, parameters = authors("flatten_pvt_v2_b0")
    model = timm.create_model("flatten_pvt_v2_b0").double().eval()
    model.load_state_dict(checkpoint_filter_fn({"model": weights}, model))
    with torch.no_grad():
        assert relative_error(model(images[:1]), scores[:1]) < 1e-13  # measured: 9.5e-16
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("flatten_pvt_v2_b0", 3.59),
        ("flatten_pvt_v2_b1", 12.93),
        ("flatten_pvt_v2_b2", 22.55),
        ("flatten_pvt_v2_b3", 38.27),
        ("flatten_pvt_v2_b4", 51.84),
        ("flatten_pvt_v2_b5", 67.06),
    ],
)
def test_parameters_count_as_published(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("size", [(64, 64), (75, 107)])
def test_the_softmax_twin_is_timms_model(size: tuple[int, int]) -> None:
    twin = small("flatten_pvt_v2_b0", attn_types="SSSS")
    host = timm.create_model("pvt_v2_b0", **{key: value for key, value in SMALL.items() if key != "img_size"}).eval()
    host.load_state_dict(twin.state_dict())
    images = torch.randn(2, 3, *size)
    assert torch.equal(twin(images), host(images))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_size_passes_and_leaves_the_training_size_as_it_was(layout: dict[str, Any]) -> None:
    model = small("flatten_pvt_v2_b0", **layout)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for size in [(32, 48), (53, 91), (3, 7), (96, 136)]:
            assert model(torch.randn(1, 3, *size)).isfinite().all()
        assert torch.equal(model(images), before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_official_files_load_by_both_of_timms_routes(layout: dict[str, Any], tmp_path: Path) -> None:
    trained = small("flatten_pvt_v2_b0", **layout, num_classes=1000)
    file = tmp_path / "official.pth"
    torch.save({"model": official(trained), "epoch": 300}, file)
    images = torch.randn(2, 3, 50, 70)
    for route in ({"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}, {"checkpoint_path": str(file)}):
        model = timm.create_model("flatten_pvt_v2_b0", **(SMALL | layout | {"num_classes": 1000} | route)).eval()
        assert torch.equal(model(images), trained(images))


def test_weights_of_one_size_load_into_another_size_other_classes_and_channels(tmp_path: Path) -> None:
    trained = small("flatten_pvt_v2_b0", num_classes=1000)
    file = tmp_path / "official.pth"
    torch.save({"model": official(trained)}, file)

    def load(**kwargs: Any) -> Any:
        route = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}, "num_classes": 1000}
        return timm.create_model("flatten_pvt_v2_b0", **(SMALL | route | kwargs)).eval()

    images = torch.randn(1, 3, 96, 128)
    torch.testing.assert_close(load(img_size=(96, 128))(images), trained(images))
    assert load(num_classes=3)(images).shape == (1, 3)
    assert load(in_chans=1)(images[:, :1]).shape == (1, 1000)


def test_encodings_resized_for_good_give_what_resizing_at_each_call_gives() -> None:
    model = small("flatten_pvt_v2_b0", sr_ratios=(8, 4, 2, 1))
    images = torch.randn(1, 3, 96, 70)
    before = model(images)
    model.set_input_size((96, 70))  # type: ignore[operator]
    torch.testing.assert_close(model(images), before)


def test_every_stage_hands_out_its_features_rounded_up() -> None:
    model = small("flatten_pvt_v2_b0", features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]  # type: ignore[operator, union-attr]
    levels = model(torch.randn(1, 3, 50, 70))
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 13, 18), (16, 7, 9), (24, 4, 5), (32, 2, 3)]


def test_every_parameter_gets_a_gradient_and_recomputing_keeps_it() -> None:
    model: Any = small("flatten_pvt_v2_b0", sr_ratios=(8, 4, 2, 1)).train()
    images, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    "option",
    [
        {"drop_rate": 0.5},
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
    plain, other = small("flatten_pvt_v2_b0", **layout), small("flatten_pvt_v2_b0", **(layout | option))
    other.load_state_dict(plain.state_dict(), strict="attn_types" not in option)
    images = torch.randn(4, 3, 64, 64)
    assert not torch.allclose(plain.train()(images), other.train()(images))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attn_types": "LLX"}, "attn_types must be"),
        ({"sr_ratios": (8, 4)}, "sr_ratios must be"),
        ({"attn_drop_rate": 0.1}, "attn_drop_rate acts on"),
        ({"linear": True}, "linear is timm's pooled softmax"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_in_words(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("flatten_pvt_v2_b0", **option)
