"""What every registered model owes to timm's users. Registering a model is what tests it: nothing here is named twice."""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from flatten_transformer.benchmark.models import model_cost
from flatten_transformer.layers import FocusedLinearAttention, set_backend
from flatten_transformer.ops.cpp.build import unavailable
from tests.helpers import TensorsMade, relative_error
from tests.models.families import FAMILIES, FAMILY, MIXED, by_family, create, layouts, official, small

ALL = timm.list_models("flatten_*")
OFFICIAL = [family for family in FAMILIES if FAMILIES[family].official]
PUBLISHED = {  # parameters in millions, GMACs: as the paper and its code report them, and for larger DeiT as counted
    "flatten_deit_tiny_patch16_224": (6.19, 1.14),
    "flatten_deit_small_patch16_224": (22.98, 4.36),
    "flatten_deit_base_patch16_224": (88.40, 17.04),
    "flatten_pvt_tiny": (12.15, 2.0),
    "flatten_pvt_small": (21.67, 4.0),
    "flatten_pvt_medium": (37.24, None),
    "flatten_pvt_large": (50.65, None),
    "flatten_pvt_v2_b0": (3.59, None),
    "flatten_pvt_v2_b1": (12.93, None),
    "flatten_pvt_v2_b2": (22.55, None),
    "flatten_pvt_v2_b3": (38.27, None),
    "flatten_pvt_v2_b4": (51.84, None),
    "flatten_pvt_v2_b5": (67.06, None),
    "flatten_swin_tiny_patch4_224": (29.19, 4.5),
    "flatten_swin_small_patch4_224": (50.51, 8.7),
    "flatten_swin_base_patch4_224": (88.97, 15.4),
    "flatten_swin_base_patch4_384": (91.43, 46.5),
    "flatten_cswin_tiny_224": (21.20, None),
    "flatten_cswin_small_224": (35.45, None),
    "flatten_cswin_base_224": (74.87, None),
    "flatten_cswin_base_384": (78.37, None),
}


def on_meta(name: str, **kwargs: Any) -> Any:
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    return model.eval()


def shallow(name: str) -> dict[str, Any]:
    """Return the fewest blocks that give four feature maps."""
    return {"depth": 4} if "deit" in name else {"depths": (1, 1, 1, 1)}


@lru_cache
def registered(name: str) -> Any:
    """Return a model of a registered size, to look at and not to change."""
    return on_meta(name)


def images(height: int, width: int, *, batch: int = 1, channels: int = 3, device: str = "cpu") -> Tensor:
    return torch.randn(batch, channels, height, width, device=device)


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return create(request.param)


@pytest.fixture(params=FAMILIES, scope="module")
def traced(request: pytest.FixtureRequest) -> Any:
    """Return a model of as few blocks as have every kind of one, both in one stage: tracing takes a second a block."""
    torch.manual_seed(0)
    fewest: dict[str, dict[str, Any]] = {
        "deit": {"attn_types": "LS"},
        "swin": {"depths": (2, 1, 2, 1), "attn_types": "LS-L-SL-S"},  # every second block shifts
    }
    return create(request.param, **fewest.get(request.param, {"depths": (1, 2, 1, 1), "attn_types": "L-LS-L-S"}))


# The registered sizes ---------------------------------------------------------------------------------------------


def test_the_models_of_the_paper_are_all_there() -> None:
    assert len(ALL) == 21
    assert set(PUBLISHED) == set(ALL)


def test_every_file_of_models_is_a_family_of_the_tests() -> None:
    files = {timm.models.model_entrypoint(name).__module__ for name in ALL}
    assert {timm.models.model_entrypoint(family.name).__module__ for family in FAMILIES.values()} == files


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    parameters_m, gmacs = PUBLISHED[name]
    if gmacs is None:
        assert round(sum(parameter.numel() for parameter in registered(name).parameters()) / 1e6, 2) == parameters_m
        return
    cost = model_cost(name)
    assert round(cost.parameters / 1e6, 2) == parameters_m
    # the paper rounds, and for Swin at 384 counts a little that is not a product: 46.5 against 46.38
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.021)


@pytest.mark.parametrize("name", ALL)
def test_the_configuration_is_that_of_imagenet(name: str) -> None:
    config: Any = timm.get_pretrained_cfg(name)
    side = 384 if name.endswith("384") else 224
    assert (config.input_size, config.num_classes) == ((3, side, side), 1000)
    assert bool(config.url) == timm.is_model_pretrained(name)


@pytest.mark.parametrize("name", ALL)
def test_classes_and_channels_can_be_chosen_and_the_classifier_replaced(name: str) -> None:
    model = on_meta(name, num_classes=7, in_chans=1, **shallow(name))
    _, height, width = model.pretrained_cfg["input_size"]
    features = model.forward_features(images(height, width, channels=1, device="meta"))
    assert model.forward_head(features).shape == (1, 7)
    model.reset_classifier(3)
    assert model.forward_head(features).shape == (1, 3)
    model.reset_classifier(0)
    assert model.forward_head(features).shape == (1, model.num_features)


@pytest.mark.parametrize("name", ALL)
def test_feature_pyramids_have_the_channels_and_reductions_they_declare(name: str) -> None:
    model = on_meta(name, features_only=True, out_indices=(0, 1, 2, 3), **shallow(name))
    _, height, width = model.pretrained_cfg["input_size"]
    maps = model(images(height, width, device="meta"))
    declared = list(zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True))
    assert [tuple(features.shape) for features in maps] == [
        (1, channels, height // reduction, width // reduction) for channels, reduction in declared
    ]
    if "deit" not in name:
        assert model.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.parametrize("name", ALL)
def test_only_vectors_and_what_the_recipes_exempt_escape_weight_decay(name: str) -> None:
    model = registered(name)
    exempt = model.no_weight_decay()
    if "pvt_v2" not in name and "deit" not in name:
        assert exempt == {name for name, _ in model.named_parameters() if name.endswith("relative_position_bias_table")}
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=exempt)
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        should = parameter.ndim > 1 and parameter_name not in exempt
        assert (id(parameter) in decayed) == should, parameter_name
        if parameter_name.endswith((".scale", ".positional_encoding")):
            assert id(parameter) in decayed, parameter_name


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_has_a_place_in_the_order_of_layers(name: str) -> None:
    model = registered(name)
    layers = group_parameters(model, model.group_matcher())
    assert sum(len(names) for names in layers.values()) == len(list(model.named_parameters()))


# What timm offers, on small models --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "pvt_v2"])  # timm groups it by stages
def test_layers_are_grouped_from_the_stem_over_each_block_to_the_classifier(family: str) -> None:
    model = create(family)
    groups = list(group_parameters(model, model.group_matcher()).values())
    depths = FAMILIES[family].sizes.get("depths", (2,))
    assert len(groups) == 1 + sum(depths) + 1
    assert any("patch_embed" in name or "stem" in name for name in groups[0])
    assert [name for name in groups[-1] if name.startswith("head.")]
    if "depths" in FAMILIES[family].sizes:
        assert len(group_parameters(model, model.group_matcher(coarse=True))) == 1 + 4 + 1


@FAMILY
def test_the_classifier_can_be_exchanged_and_removed(family: str) -> None:
    model, x = small(family).double(), images(64, 64).double()
    model.reset_classifier(7)
    assert model(x).shape == (1, 7)
    assert model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(0)
    features = model.forward_features(x)
    assert torch.equal(model(x), model.forward_head(features, pre_logits=True))
    assert create(family, num_classes=0)(x.float()).shape == model(x).shape
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape


@FAMILY
def test_every_stage_hands_out_its_features_rounded_up(family: str) -> None:
    count = len(create(family).feature_info)
    model = create(family, features_only=True, out_indices=tuple(range(count)))
    declared = list(zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True))
    assert [tuple(level.shape[1:]) for level in model(images(51, 71))] == [(c, -(-51 // r), -(-71 // r)) for c, r in declared]
    assert create(family, features_only=True, out_indices=(1,)).feature_info.reduction() == [declared[1][1]]
    depth = {"depth": 4} if family == "deit" else {}
    assert len(create(family, features_only=True, **depth)(images(51, 71))) == (3 if depth else 4)  # by default


def test_intermediates_are_the_features_on_the_way(model: Any) -> None:
    x = images(64, 96)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        last_only = model.forward_intermediates(x, indices=1, intermediates_only=True, stop_early=True)
        assert torch.equal(final, model.forward_features(x))
    assert all(features.ndim == 4 and features.shape[0] == 1 for features in maps)
    assert torch.equal(last_only[0], maps[-1])


@pytest.mark.parametrize("family", ["cswin", "pvt"])
def test_intermediates_of_our_own_hosts_are_normalised_stopped_and_pruned(family: str) -> None:
    model, x = small(family), images(50, 70)
    last, levels = model.forward_intermediates(x, norm=True)
    first = last.permute(0, 3, 1, 2) if family == "cswin" else last
    assert torch.equal(last, model.forward_features(x))
    assert torch.equal(first, levels[-1])
    raw = model.forward_intermediates(x, intermediates_only=True)
    assert torch.allclose(raw[-1], levels[-1]) == (family == "pvt")  # which has no norm there
    early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert all(torch.equal(level, expected) for level, expected in zip(early, levels[:2], strict=True))
    with pytest.raises(ValueError, match="output_fmt must be"):
        model.forward_intermediates(x, output_fmt="NHWC")
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert model.num_features == model.head_hidden_size == levels[1].shape[1]
    assert torch.equal(model(x).permute(0, 3, 1, 2) if family == "cswin" else model(x), levels[1])


@FAMILY
def test_the_backend_is_an_option_of_every_family(family: str) -> None:
    linear = [part for part in create(family, backend="portable").modules() if isinstance(part, FocusedLinearAttention)]
    assert {part.backend for part in linear} == {"portable"}
    with pytest.raises(ValueError, match=r"backend must be one of portable, cpp.*got 'fast'"):
        create(family, backend="fast")


@pytest.mark.skipif(unavailable() is not None, reason=f"no compiled kernel: {unavailable()}")
def test_every_backend_gives_the_same_scores(model: Any) -> None:
    x = images(64, 96)
    scores = {}
    with torch.no_grad():
        for backend in ("portable", "cpp"):
            set_backend(model, backend)
            scores[backend] = model(x)
    set_backend(model, None)
    torch.testing.assert_close(scores["cpp"], scores["portable"], rtol=1e-4, atol=1e-5)


# Any size ---------------------------------------------------------------------------------------------------------


@layouts()
def test_any_size_passes_learns_and_leaves_the_built_size_as_it_was(family: str, layout: dict[str, Any]) -> None:
    model, x = small(family, **layout), images(64, 64, batch=2)
    with torch.no_grad():
        before = model(x)
        for height, width in [(32, 48), (53, 91), (3, 7), (96, 136)]:
            assert model(images(height, width)).isfinite().all()
        assert torch.equal(model(x), before)
    model.train()(images(53, 91, batch=2)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@layouts(*(family for family in FAMILIES if family != "swin"))  # whose windows grow with the image: see test_flatten_swin.py
def test_a_model_called_at_a_size_is_the_model_built_or_set_for_it(family: str, layout: dict[str, Any]) -> None:
    height, width = size = (128, 90) if "pvt" in family else (128, 96)
    model, x = small(family, **layout), images(height, width)
    before = model(x)
    built = create(family, **layout, img_size=size)
    built.load_state_dict(model.state_dict())
    torch.testing.assert_close(built(x), before)
    model.set_input_size(img_size=size)
    torch.testing.assert_close(model(x), before)


@FAMILY
def test_recomputing_blocks_changes_no_gradient_even_with_another_size_between(family: str) -> None:
    model = small(family, **FAMILIES[family].layouts[1]).train()
    x = images(64, 96, batch=2)

    def gradients() -> list[Tensor]:
        out = model(x)
        with torch.no_grad():
            model(images(32, 32))
        return list(torch.autograd.grad(out.square().sum(), [p for p in model.parameters() if p.requires_grad]))

    with TensorsMade() as plain:
        expected = gradients()
    model.set_grad_checkpointing(True)
    with TensorsMade() as recomputing:
        assert all(torch.equal(*pair) for pair in zip(gradients(), expected, strict=True))
    assert recomputing.total > 1.1 * plain.total
    model.set_grad_checkpointing(False)
    with TensorsMade() as again:
        gradients()
    assert again.total == plain.total


# Files ------------------------------------------------------------------------------------------------------------


@layouts(*OFFICIAL)
def test_official_files_load_by_all_routes(family: str, layout: dict[str, Any], tmp_path: Path) -> None:
    layout = layout | {"num_classes": 1000}
    trained, x = small(family, **layout), images(50, 70, batch=2)
    file = str(tmp_path / "official.pth")
    torch.save({"model": official(family, trained), "epoch": 300}, file)
    routes: list[dict[str, Any]] = [{"pretrained": True, "pretrained_cfg_overlay": {"file": file}}, {"checkpoint_path": file}]
    for route in routes:
        assert torch.equal(create(family, **layout, **route)(x), trained(x))
    whole = nn.ModuleDict({"backbone": deepcopy(create(family, **layout))})
    whole.load_state_dict({f"backbone.{name}": value for name, value in official(family, trained).items()})
    assert torch.equal(whole["backbone"](x), trained(x))


@FAMILY
def test_weights_load_into_other_classes_and_channels(family: str, tmp_path: Path) -> None:
    trained = small(family, num_classes=1000)
    torch.save({"model": official(family, trained)}, tmp_path / "official.pth")
    route: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "official.pth")}}
    fewer, x = create(family, **route, num_classes=3), images(64, 64)
    assert torch.equal(fewer.forward_features(x), trained.forward_features(x))
    assert fewer(x).shape == (1, 3)
    assert create(family, **route, num_classes=1000, in_chans=1)(x[:, :1]).shape == (1, 1000)


# Options ----------------------------------------------------------------------------------------------------------

ACTING: dict[str, list[Any]] = {
    "cswin": [{"softmax_split_sizes": (1, 2, 1, 7)}, {"attn_types": "SSSS"}],
    "deit": [{"pos_drop_rate": 0.5}, {"focusing_factor": 1.0}, {"attn_types": "S"}],
    "pvt": [{"pos_drop_rate": 0.5}, {"stretch": "tokens"}, {"attn_types": "SSSS"}],
    "pvt_v2": [{"stretch": "tokens"}, {"attn_types": "SSSS"}],
    "swin": [{"attn_types": "SSSS"}],
}
for options in ACTING.values():
    options += [{"drop_rate": 0.5}, {"proj_drop_rate": 0.5}, {"drop_path_rate": 0.5}, {"focusing_factor": 4.0}]
    options += [{"attn_drop_rate": 0.5}]


@by_family(ACTING, "option")
def test_every_option_changes_the_result_and_dropout_in_training_alone(family: str, option: dict[str, Any]) -> None:
    layout: dict[str, Any] = {"attn_types": MIXED[family]} | ({"sr_ratios": (4, 2, 1, 1)} if "pvt" in family else {})
    plain, other = small(family, **layout), small(family, **(layout | option))
    other.load_state_dict(plain.state_dict(), strict="attn_types" not in option)
    x = images(64, 64, batch=4)
    assert not torch.allclose(plain.train()(x), other.train()(x))
    assert torch.equal(plain.eval()(x), other.eval()(x)) == any("drop" in name for name in option)


SHAPING: dict[str, list[Any]] = {
    "cswin": [{"split_sizes": 4}, {"mlp_ratio": 2.0}],
    "deit": [],
    "pvt": [{"sr_ratios": 2}],
    "pvt_v2": [{"sr_ratios": 2}],
    "swin": [{"window_size": 4}, {"softmax_window_size": 2}],
}
for options in SHAPING.values():
    options += [{"kernel_size": 3}, {"qkv_bias": False}]


@by_family(SHAPING, "option")
def test_some_options_change_the_shape_of_what_is_learned(family: str, option: dict[str, Any]) -> None:
    plain, other = ({name: x.shape for name, x in create(family, **kwargs).state_dict().items()} for kwargs in ({}, option))
    assert plain != other


REFUSED: dict[str, list[Any]] = {
    "cswin": [
        ({"split_sizes": 0}, "split_sizes must be a positive width"),
        ({"split_sizes": (7, 7)}, "split_sizes must be a positive width"),
        ({"softmax_split_sizes": (1, 2, 7, -7)}, "softmax_split_sizes must be a positive width"),
        ({"num_heads": (1, 1, 1, 1)}, "num_heads must be even"),
    ],
    "deit": [
        ({"patch_drop_rate": 0.2}, "patch_drop_rate has no meaning.*got 0.2"),
        ({"qk_norm": True}, "qk_norm has no meaning.*got True"),
        ({"scale_attn_norm": True}, "scale_attn_norm has no meaning.*got True"),
        ({"dynamic_img_size": False}, "dynamic_img_size cannot be switched off"),
        ({"attn_types": ""}, "attn_types must be.*got ''"),
    ],
    "pvt": [
        ({"sr_ratios": (8, 4)}, "sr_ratios must be"),
        ({"global_pool": "token"}, "global_pool must be"),
        ({"stretch": "rows"}, "stretch must be"),
    ],
    "pvt_v2": [
        ({"sr_ratios": (8, 4)}, "sr_ratios must be"),
        ({"stretch": "rows"}, "stretch must be"),
        ({"linear": True}, "linear is timm's pooled softmax"),
    ],
    "swin": [
        ({"window_size": 0}, "window_size must be a side"),
        ({"window_size": (7, 7, 7)}, "window_size must be a side"),
        ({"softmax_window_size": (7, -1)}, "softmax_window_size must be a side"),
        ({"head_dim": 8}, "head_dim has no meaning"),
        ({"strict_img_size": True}, "strict_img_size can only be False"),
        ({"always_partition": True}, "always_partition can only be False"),
    ],
}
for refused in REFUSED.values():
    refused += [
        ({"attn_types": "LLX"}, "attn_types must be.*each of [24].*got 'LLX'"),
        ({"attn_types": "X"}, "attn_types must be.*got 'X'"),
        ({"attn_types": "LSLSLSLSL"}, r"attn_types must be.*each of \d blocks.*got 'LSLSLSLSL' \(9 letters\)"),
        ({"kernel_size": 4}, "kernel_size must be odd.*4"),
        ({"focusing_factor": 0.5}, "focusing_factor must be.*0.5"),
    ]
    refused += [({"attn_types": "L", "attn_drop_rate": 0.1}, "attn_drop_rate acts on")]


@by_family(REFUSED, "option", "message")
def test_an_option_out_of_range_is_refused_in_words(family: str, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(family, **option)


# Precision and compilers ------------------------------------------------------------------------------------------


@FAMILY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_single_and_learns(family: str, dtype: torch.dtype) -> None:
    model, x = create(family), images(64, 96)
    expected = model.forward_features(x)
    model.to(dtype)
    assert relative_error(model.forward_features(x.to(dtype)), expected) < 2e-2
    model(x.to(dtype)).float().sum().backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


def test_compiled_models_are_one_graph_and_say_the_same(traced: Any) -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(traced, backend="aot_eager", fullgraph=True, dynamic=False)
    x = images(64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), traced(x), rtol=1e-4, atol=1e-5)


def test_exported_programs_say_the_same(traced: Any) -> None:
    x = images(64, 64, batch=2)
    with torch.no_grad():
        program = torch.export.export(traced, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        y = images(64, 64, batch=3)
        torch.testing.assert_close(program.module()(y), traced(y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deit"])
def test_torchvision_and_segmentation_models_take_them_as_backbones(family: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")
    x = images(64, 96)
    backbone = create(family, features_only=True)
    maps = {str(index): features for index, features in enumerate(backbone(x))}
    pyramid = FeaturePyramidNetwork(backbone.feature_info.channels(), 16)
    assert [tuple(level.shape[2:]) for level in pyramid(maps).values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for decoder in (smp.FPN, smp.UPerNet):
        name, sizes = FAMILIES[family][:2]
        segmenter = decoder(f"tu-{name}", encoder_weights=None, classes=3, **sizes).eval()
        assert segmenter(x).shape == (1, 3, 64, 96)
