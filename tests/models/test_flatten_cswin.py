"""FLatten-CSwin: exact stripes, any size, official files, timm's contract."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.windows import Windows
from flatten_transformer.models.attention_choice import AttentionChoice
from flatten_transformer.models.flatten_cswin import SoftmaxStripes, attend_in_stripes, checkpoint_filter_fn, linear_stripes
from tests.helpers import relative_error

SMALL: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 8,
    "depths": (2, 1, 2, 1),
    "num_heads": (2, 2, 4, 4),
    "num_classes": 5,
    "softmax_split_sizes": (1, 2, 3, 7),
}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"split_sizes": (5, 3, 2, 1)},
    {"attn_types": "LSLS"},
    {"attn_types": "L"},
    {"attn_types": "S"},
]


def create(**kwargs: Any) -> Any:
    return timm.create_model("flatten_cswin_tiny_224", **(SMALL | kwargs)).eval()


def small(**kwargs: Any) -> Any:
    """Return a small model, every tensor of it drawn at random."""
    return draw(create(**kwargs))


def draw(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module


def official(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model by the names the authors' files hold."""
    renamed = {}
    for name, value in model.state_dict().items():
        name = name.replace("stem.conv", "stage1_conv_embed.0").replace("stem.norm", "stage1_conv_embed.2")
        name = re.sub(r"^stages\.(\d)\.downsample", r"merge\1", name)
        name = re.sub(r"^stages\.(\d)\.blocks", lambda found: f"stage{int(found[1]) + 1}", name)
        renamed[name.replace("head.fc.", "head.")] = value
    return renamed


def softmax_by_hand(attn: SoftmaxStripes, image: Tensor) -> Tensor:
    """Attend within ``[B, height, width, 3 C]`` as CSwin's paper has it, ``[B, height, width, C]``."""
    query, key, value = (part.flatten(1, 2).unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for part in image.chunk(3, dim=3))
    weights = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(dim=3)
    values = image.chunk(3, dim=3)[2]
    enhanced = attn.get_v(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return (weights @ value).transpose(1, 2).flatten(2).unflatten(1, image.shape[1:3]) + enhanced


def linear_by_hand(attn: Any, image: Tensor, window: tuple[int, int]) -> Tensor:
    """Attend within the top left corner of a window with the same corner of its encoding, unpadded."""
    height, width = image.shape[1:3]
    corner: Any = linear_stripes(AttentionChoice(), 8, 2, (height, width), dtype=torch.float64)
    state = attn.state_dict()
    state["positional_encoding"] = state["positional_encoding"].unflatten(1, window)[:, :height, :width].flatten(1, 2)
    corner.load_state_dict(state)
    query, key, value = image.flatten(1, 2).chunk(3, dim=2)
    out = corner.attend(query, key, value, Layout((height, width), (height, width))).unflatten(1, (height, width))
    enhanced = corner.get_v(image.chunk(3, dim=3)[2].permute(0, 3, 1, 2))
    return out + enhanced.permute(0, 2, 3, 1)


@pytest.mark.parametrize("window", [(5, 3), (2, 7)])
@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_a_padded_stripe_gives_what_a_narrower_stripe_gives(kind: str, window: tuple[int, int]) -> None:
    attn = draw(
        linear_stripes(AttentionChoice(), 8, 2, window, dtype=torch.float64)
        if kind == "linear"
        else SoftmaxStripes(8, 2, attn_drop=0.0, dtype=torch.float64)
    )
    qkv = torch.randn(2, 5, 7, 24, dtype=torch.float64)
    windows = Windows((5, 7), window)
    tokens = windows.split(qkv)
    out = windows.join(attn(tokens, windows) if kind == "softmax" else attend_in_stripes(attn, tokens[..., :8], tokens, windows))
    for top in range(0, 5, window[0]):
        for left in range(0, 7, window[1]):
            part = qkv[:, top : top + window[0], left : left + window[1]]
            wanted = softmax_by_hand(attn, part) if kind == "softmax" else linear_by_hand(attn, part, window)
            came = out[:, top : top + window[0], left : left + window[1]]
            assert relative_error(came, wanted) < 1e-13  # measured: 1e-15


def test_each_half_of_the_channels_attends_along_its_own_axis() -> None:
    block = small(attn_types="L", split_sizes=1).stages[0].blocks[0]
    x = torch.randn(1, 6, 6, 8, requires_grad=True)
    block.proj = nn.Identity()
    for half, reached in ((slice(0, 4), (6, 1)), (slice(4, 8), (1, 6))):
        (gradient,) = torch.autograd.grad(block._attend(x)[0, 2, 3, half].sum(), x)
        seen = gradient[0].abs().sum(dim=2) > 0
        assert (int(seen.any(dim=1).sum()), int(seen.any(dim=0).sum())) == reached


def test_two_stripes_of_the_whole_map_are_one_branch_with_all_heads() -> None:
    striped = small(attn_types="S", img_size=128, softmax_split_sizes=16)
    whole = create(attn_types="S", softmax_split_sizes=16)
    assert [len(stage.blocks[0].attns) for stage in striped.stages] == [2, 1, 1, 1]
    assert [len(stage.blocks[0].attns) for stage in whole.stages] == [1, 1, 1, 1]
    whole.load_state_dict(striped.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(whole(images), striped(images))
    back = create(attn_types="S", img_size=128, softmax_split_sizes=16)
    back.load_state_dict(whole.state_dict())
    assert all(torch.equal(value, striped.state_dict()[name]) for name, value in back.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_size_passes_and_leaves_the_training_size_as_it_was(layout: dict[str, Any]) -> None:
    model = small(**layout)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for size in [(32, 48), (53, 91), (3, 7), (96, 136)]:
            assert model(torch.randn(1, 3, *size)).isfinite().all()
        assert torch.equal(model(images), before)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_model_called_at_a_size_is_the_model_built_or_set_for_it(layout: dict[str, Any]) -> None:
    model, images = small(**layout), torch.randn(1, 3, 128, 96)
    before = model(images)
    built = create(**layout, img_size=(128, 96))
    built.load_state_dict(model.state_dict())
    torch.testing.assert_close(built(images), before)
    model.set_input_size((128, 96))
    torch.testing.assert_close(model(images), before)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("flatten_cswin_tiny_224", 21.20),
        ("flatten_cswin_small_224", 35.45),
        ("flatten_cswin_base_224", 74.87),
        ("flatten_cswin_base_384", 78.37),
    ],
)
def test_parameters_count_as_published(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def test_stripes_as_wide_as_the_maps_are_the_default() -> None:
    with torch.device("meta"):
        default, spelled = (
            timm.create_model("flatten_cswin_tiny_224", attn_types="L", **option)
            for option in ({}, {"split_sizes": (56, 28, 14, 7)})
        )
    assert {name: value.shape for name, value in default.state_dict().items()} == {
        name: value.shape for name, value in spelled.state_dict().items()
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_official_files_load_by_all_routes(layout: dict[str, Any], tmp_path: Path) -> None:
    trained = small(**layout, num_classes=1000)
    file = tmp_path / "official.pth"
    torch.save({"model": official(trained), "epoch": 300}, file)
    images = torch.randn(2, 3, 50, 70)
    for route in ({"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}, {"checkpoint_path": str(file)}):
        assert torch.equal(create(**layout, num_classes=1000, **route)(images), trained(images))
    model = create(**layout, num_classes=1000)
    model.load_state_dict(official(trained))
    assert torch.equal(model(images), trained(images))


def test_weights_load_into_other_classes_and_channels(tmp_path: Path) -> None:
    file = tmp_path / "official.pth"
    torch.save({"model": official(small(num_classes=1000))}, file)
    route: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    assert create(**route, num_classes=3)(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert create(**route, num_classes=1000, in_chans=1)(torch.randn(1, 1, 64, 64)).shape == (1, 1000)


def test_a_checkpoint_of_another_layout_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="not of FlattenCSwinTransformer in this size"):
        checkpoint_filter_fn(official(small(attn_types="S")), small())
    with pytest.raises(RuntimeError, match="scale"):
        small().load_state_dict(official(small(attn_types="S")))


def test_every_stage_hands_out_its_features_rounded_up() -> None:
    model = small(features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    levels = model(torch.randn(1, 3, 51, 71))
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 13, 18), (16, 7, 9), (32, 4, 5), (64, 2, 3)]
    assert small(features_only=True, out_indices=(1,)).feature_info.reduction() == [8]


def test_intermediates_are_the_stages() -> None:
    model, images = small(), torch.randn(1, 3, 50, 70)
    last, levels = model.forward_intermediates(images, norm=True)
    assert torch.equal(last, model.forward_features(images))
    assert torch.equal(last.permute(0, 3, 1, 2), levels[-1])
    raw = model.forward_intermediates(images, intermediates_only=True)
    assert not torch.allclose(raw[-1], levels[-1])
    early = model.forward_intermediates(images, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert all(torch.equal(level, wanted) for level, wanted in zip(early, levels[:2], strict=True))
    with pytest.raises(ValueError, match="output_fmt must be"):
        model.forward_intermediates(images, output_fmt="NHWC")
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert torch.equal(model(images).permute(0, 3, 1, 2), levels[1])


def test_recomputed_blocks_give_the_same_gradients() -> None:
    model, gradients = small().train(), []
    images = torch.randn(2, 3, 64, 64)
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_gradients_stay_finite_where_stripes_are_padded() -> None:
    model = small(split_sizes=(5, 3, 2, 1)).train()
    model(torch.randn(2, 3, 53, 91)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_layers_are_grouped_and_the_released_recipes_exempt_nothing_by_name() -> None:
    model = small()
    groups = list(group_parameters(model, model.group_matcher()).values())
    assert len(groups) == 1 + 6 + 1  # stem, blocks, classifier
    assert len(group_parameters(model, model.group_matcher(coarse=True))) == 1 + 4 + 1
    assert model.no_weight_decay() == set()


def test_the_classifier_can_be_exchanged_and_removed() -> None:
    model, images = small(), torch.randn(1, 3, 64, 64)
    model.reset_classifier(7)
    assert model(images).shape == (1, 7)
    assert model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(0)
    assert torch.equal(model(images), model.forward_head(model.forward_features(images), pre_logits=True))
    model.reset_classifier(0, "")
    assert model(images).shape == (1, 2, 2, 64)


@pytest.mark.parametrize(
    "option",
    [
        {"drop_rate": 0.5},
        {"proj_drop_rate": 0.5},
        {"attn_drop_rate": 0.5},
        {"drop_path_rate": 0.5},
        {"focusing_factor": 4.0},
        {"softmax_split_sizes": (1, 2, 1, 7)},
        {"attn_types": "SSSS"},
    ],
    ids=str,
)
def test_every_option_changes_the_result(option: dict[str, Any]) -> None:
    plain, other = small(), small(**option)
    other.load_state_dict(plain.state_dict(), strict="attn_types" not in option)
    images = torch.randn(4, 3, 64, 64)
    assert not torch.allclose(plain.train()(images), other.train()(images))


@pytest.mark.parametrize("option", [{"split_sizes": 4}, {"kernel_size": 3}, {"mlp_ratio": 2.0}, {"qkv_bias": False}], ids=str)
def test_stripes_kernels_and_widths_change_the_shape_of_what_is_learned(option: dict[str, Any]) -> None:
    shapes = [{name: value.shape for name, value in small(**which).state_dict().items()} for which in ({}, option)]
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attn_types": "LLX"}, "attn_types must be"),
        ({"attn_types": "LLLX"}, "attn_types must be"),
        ({"split_sizes": 0}, "split_sizes must be a positive width"),
        ({"split_sizes": (7, 7)}, "split_sizes must be a positive width"),
        ({"softmax_split_sizes": (1, 2, 7, -7)}, "softmax_split_sizes must be a positive width"),
        ({"num_heads": (1, 1, 1, 1)}, "num_heads must be even"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"focusing_factor": 0.5}, "focusing_factor must be"),
        ({"attn_types": "L", "attn_drop_rate": 0.1}, "attn_drop_rate acts on"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_in_words(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**option)
