"""Every family with every attention, on tiny models: one argument, any input size, checkpoints, and refusals."""

import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from flatten_transformer.layers import (
    FocusedLinearAttention,
    GridAttention,
    list_attentions,
    register_attention,
    unregister_attention,
)
from flatten_transformer.models.attention_choice import AttentionOptions, choose_attention
from flatten_transformer.models.cost import count_macs, count_parameters
from tests.helpers import randomise
from tests.models.families import FAMILIES

TINY: dict[str, dict[str, Any]] = {
    "flatten_deit_tiny_patch16_224": {"embed_dim": 16, "depth": 2, "num_heads": 2, "attn_types": "LS"},
    "flatten_pvt_tiny": {"embed_dims": (8, 8, 8, 16), "num_heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1)},
    "flatten_pvt_v2_b0": {"embed_dims": (8, 8, 8, 16), "num_heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1)},
    "flatten_swin_tiny_patch4_224": {
        "embed_dim": 8,
        "depths": (2, 1, 2, 1),
        "num_heads": (1, 1, 2, 2),
        "window_size": 8,
        "softmax_window_size": 2,  # smaller than the map, so that windows of softmax attention are shifted and masked
    },
    "flatten_cswin_tiny_224": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "split_sizes": 4},
}
HOSTED = ("flatten_deit_tiny_patch16_224", "flatten_pvt_v2_b0", "flatten_swin_tiny_patch4_224")  # by timm
PYRAMIDS = ("flatten_pvt_tiny", "flatten_pvt_v2_b0")
FAMILY = pytest.mark.parametrize("family", TINY)
EVERY = pytest.mark.parametrize("attention", list_attentions())


def create(family: str, attention: str = "focused", **options: Any) -> Any:
    if attention == "agent":
        options["attention_args"] = {"num_agents": 4, **options.get("attention_args", {})}
    torch.manual_seed(0)
    options = {"img_size": 64, "num_classes": 3, **TINY[family], **options}
    return timm.create_model(family, attention=attention, **options).eval()


def test_every_family_is_here() -> None:
    assert TINY.keys() == {family.name for family in FAMILIES.values()}


@FAMILY
def test_the_signature_lists_the_keywords_of_the_attention(family: str) -> None:
    parameters = inspect.signature(type(create(family))).parameters
    assert parameters.keys() >= AttentionOptions.__annotations__.keys()
    assert parameters["attention"].default == "focused"
    assert ("kwargs" in parameters) == (family in HOSTED)


def linear_parts(model: Any) -> list[GridAttention]:
    return [part for part in model.modules() if isinstance(part, GridAttention)]


@FAMILY
@EVERY
def test_a_model_attends_so_at_any_size_and_every_parameter_learns(family: str, attention: str) -> None:
    model = create(family, attention)
    assert linear_parts(model)
    randomise(model)
    for height, width in ((64, 64), (70, 107), (33, 20)):
        scores = model(torch.randn(2, 3, height, width))
        assert scores.shape == (2, 3)
        assert scores.isfinite().all()
    model(torch.randn(2, 3, 64, 96)).square().sum().backward()
    for part in linear_parts(model):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@FAMILY
@EVERY
def test_a_feature_pyramid_and_recomputed_blocks_work_with_it(family: str, attention: str) -> None:
    stages = {"out_indices": (0, 1)} if "deit" in family else {}
    model = create(family, attention, features_only=True, **stages)
    maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in maps] == [(64 // r, 96 // r) for r in model.feature_info.reduction()]
    whole = create(family, attention)
    x = torch.randn(2, 3, 64, 64)
    plain = torch.autograd.grad(whole(x).sum(), next(whole.parameters()))[0]
    whole.set_grad_checkpointing(True)
    torch.testing.assert_close(torch.autograd.grad(whole(x).sum(), next(whole.parameters()))[0], plain)


def draw_anew(model: Any) -> None:
    """Draw all parameters of a model that was built without memory: by timm's method, or each module its own."""
    if hasattr(model, "init_weights"):
        model.init_weights()
    else:
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()


@FAMILY
@EVERY
def test_a_model_can_be_built_without_memory_and_drawn_later(family: str, attention: str) -> None:
    with torch.device("meta"):
        model = create(family, attention)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(float("nan") if tensor.is_floating_point() else 0)
    draw_anew(model)
    built = create(family, attention)
    built.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), built(images))


@pytest.mark.parametrize("family", ["flatten_deit_tiny_patch16_224", "flatten_swin_tiny_patch4_224"])
@EVERY
def test_weights_can_be_drawn_otherwise(family: str, attention: str) -> None:
    model = create(family, attention)
    model.init_weights("jax")  # uniform, up to 0.43 for the smallest projection; the default is normal with deviation 0.02
    projections = {name: weight for name, weight in model.named_parameters() if name.endswith("attn.proj.weight")}
    assert projections
    assert not {name for name, weight in projections.items() if weight.detach().abs().max() < 0.15}


@pytest.mark.parametrize("family", [family for family in TINY if "_swin" not in family])  # whose windows would grow too
@EVERY
def test_a_checkpoint_of_another_size_loads(family: str, attention: str) -> None:
    options: dict[str, Any] = {"attention_args": {"key_encoding": True}}
    if "cswin" in family:
        options["split_sizes"] = None  # whole maps
    small, large = create(family, attention, **options), create(family, attention, **options, img_size=96)
    randomise(small)
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(large(x), small(x), rtol=1e-4, atol=1e-4)
        small.set_input_size(img_size=(96, 96))
        torch.testing.assert_close(small(x), large(x), rtol=1e-4, atol=1e-4)


@FAMILY
def test_every_attention_says_something_else(family: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    said: dict[str, Tensor] = {}
    for attention in list_attentions():
        model = create(family, attention)
        randomise(model)
        with torch.no_grad():
            said[attention] = model(x)
    for one in said:
        for other in said:
            if one != other:
                assert (said[one] - said[other]).abs().max() > 5e-6, (one, other)  # a few layers of 8 channels dampen it


@FAMILY
def test_the_switches_of_the_paper_reach_every_linear_block(family: str) -> None:
    switches: dict[str, Any] = {"rank_restoration": False, "key_encoding": False, "temperature": False, "norm": "per_head"}
    for part in linear_parts(create(family, attention_args=switches, focusing_factor=2)):
        assert isinstance(part, FocusedLinearAttention)
        assert (part.dwc, part.positional_encoding, part.scale) == (None, None, None)
        assert (part.norm, part.focusing_factor) == ("per_head", 2)
    for part in linear_parts(create(family, "enhanced", kernel_size=3)):
        assert part.dwc is not None
        assert part.dwc.kernel_size == (3, 3)


@FAMILY
def test_by_default_a_model_is_focused_as_published(family: str) -> None:
    model, named = create(family), create(family, "focused", focusing_factor=3.0, kernel_size=5)
    assert model.state_dict().keys() == named.state_dict().keys()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), named(x))
    if "cswin" not in family:
        assert all(type(part) is FocusedLinearAttention for part in linear_parts(model))


@FAMILY
def test_models_can_be_pickled(family: str) -> None:
    model = create(family, "inline")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.parametrize("family", PYRAMIDS)
@EVERY
def test_a_reduced_map_is_attended_to_or_refused(family: str, attention: str) -> None:
    if attention == "angular":
        with pytest.raises(ValueError, match="AngularAttention mixes a token with its own value, so it can attend to no"):
            create(family, attention, sr_ratios=2)
        return
    model = create(family, attention, sr_ratios=(4, 2, 2, 1))
    assert model(torch.randn(2, 3, 70, 107)).isfinite().all()


def test_prefix_tokens_and_masks_pass_through_deit() -> None:
    for attention in list_attentions():
        model = create("flatten_deit_tiny_patch16_224", attention, class_token=True, global_pool="token", reg_tokens=2)
        x, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 1, 19) < 0.8
        assert model(x).isfinite().all()
        assert not torch.equal(model.forward_features(x, attn_mask=mask), model.forward_features(x)), attention


@pytest.mark.parametrize("attention", [name for name in list_attentions() if name != "agent"])  # whose bins would move
def test_padding_of_windows_never_matters(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"attention_args": {"key_encoding": False}, "attn_types": "LSSS"}
    block = create("flatten_swin_tiny_patch4_224", attention, **options).layers[0].blocks[0].double()
    randomise(block)
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    fitting = block(x)
    monkeypatch.setattr(block, "window_size_on", lambda feat_size: (7, 7))  # larger than the map
    torch.testing.assert_close(block(x), fitting)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"attention": "hydro"}, r"there is no attention 'hydro': did you mean hydra\?"),
    ({"attention_args": {"rank": False}}, "attention 'focused' has no option 'rank'"),
    ({"attention": "hydra", "focusing_factor": 3.0}, "attention 'hydra' has no option 'focusing_factor'"),
    ({"attention": "hydra", "kernel_size": 3}, "attention 'hydra' has no convolution"),
    ({"attention": "elu", "backend": "portable"}, "attention 'elu' has no option 'backend'"),
    ({"attention_args": {"kernel_size": 3}, "kernel_size": 5}, "kernel_size is 5 and, in attention_args, 3: give it once"),
]


@FAMILY
@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_wrong_choices_are_refused_with_the_cure(family: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(family, **options)


OWN = {  # options that a host sets, each with the model's own keyword by family; no keyword in the families that are not named
    "qkv_bias": dict.fromkeys(TINY, "qkv_bias"),
    "proj_drop": dict.fromkeys(TINY, "proj_drop_rate"),
    "device": dict.fromkeys(TINY, "device"),
    "dtype": dict.fromkeys(TINY, "dtype"),
    "sr_ratio": dict.fromkeys(PYRAMIDS, "sr_ratios"),
    "stretch": dict.fromkeys(PYRAMIDS, "stretch"),
    "proj_bias": {"flatten_deit_tiny_patch16_224": "proj_bias"},
    "context_dim": {},
    "projections": {},
    "num_prefix_tokens": {},
}


@FAMILY
@EVERY
def test_what_a_model_sets_itself_is_not_given_to_its_attention(family: str, attention: str) -> None:
    for option in OWN.keys() - (set() if family in PYRAMIDS else {"stretch"}):
        keyword = OWN[option].get(family)
        cure = f"pass {keyword} to the model" if keyword else "leave it out"
        with pytest.raises(ValueError, match=f"^attention_args must not hold {option}: the model sets it; {cure}$"):
            create(family, attention, attention_args={option: 1})


@FAMILY
def test_a_misspelt_keyword_is_no_keyword(family: str) -> None:
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'focussing_factor'"):
        create(family, focussing_factor=3)


@pytest.fixture
def average() -> Iterator[str]:
    @register_attention("average", rank_restoration=True)
    class Average(GridAttention):
        def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Any) -> Tensor:
            return v.mean(dim=2, keepdim=True).expand_as(q)

    yield "average"
    unregister_attention("average")


@FAMILY
def test_your_own_attention_works_in_every_family(family: str, average: str) -> None:
    model = create(family, average)
    assert {type(part).__name__ for part in linear_parts(model)} == {"Average"}
    assert model(torch.randn(1, 3, 70, 107)).isfinite().all()


def test_costs_are_those_that_the_documentation_gives() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attentions.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == list_attentions()
    for name, parameters_m, gmacs in rows:
        costs = []
        for depth in (1, 2):  # of twelve alike
            with torch.device("meta"):
                model = timm.create_model("flatten_deit_tiny_patch16_224", attention=name, depth=depth)
            costs.append((count_parameters(model), count_macs(model, (3, 224, 224))))
        counted = [one + 11 * (two - one) for one, two in zip(*costs, strict=True)]
        assert (f"{counted[0] / 1e6:.2f}", f"{counted[1] / 1e9:.2f}") == (parameters_m, gmacs), name


def test_parameters_are_those_of_the_releases_where_the_layout_is_theirs() -> None:
    with torch.device("meta"):
        inline = timm.create_model("flatten_deit_tiny_patch16_224", attention="inline", num_heads=6)
        agent = timm.create_model("flatten_deit_tiny_patch16_224", attention="agent")
    assert [round(count_parameters(model) / 1e6, 1) for model in (inline, agent)] == [6.5, 6.0]  # M, as they report


def test_a_choice_holds_what_was_asked_for_and_no_more() -> None:
    options: AttentionOptions = {"attention": "agent", "attention_args": {"num_agents": 9}, "kernel_size": 5}
    choice = choose_attention(torch.nn.Module, options | {"focusing_factor": None}, stretch="grid")
    assert choice.args == ("agent",)
    assert choice.keywords == {"stretch": "grid", "num_agents": 9, "kernel_size": 5}
