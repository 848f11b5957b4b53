"""The registry: names, options, errors that carry the cure, and attentions from outside."""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from flatten_transformer.layers import (
    GridAttention,
    create_attention,
    create_attention_core,
    list_attentions,
    register_attention,
    unregister_attention,
)
from flatten_transformer.layers.attention.base import GridOptions
from flatten_transformer.layers.attention.layout import Layout
from tests.layers.attentions import make, tokens

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("agent", {"num_agents": 50}, "whole number to the power 2, such as 49, got 50"),
    ("agent", {"num_agents": 0}, "whole number to the power 2"),
    ("polaformer", {"alpha": 0}, "alpha must be positive"),
    ("inline", {"kernel_size": 4}, "kernel_size must be odd"),
    ("elu", {"kernel_size": 3}, "attention 'elu' has no convolution whose kernel_size could be 3"),
    ("hydra", {"focusing_factor": 3}, "attention 'hydra' has no option 'focusing_factor': choose one of"),
    ("agent", {"num_agent": 9}, "attention 'agent' has no option 'num_agent': did you mean num_agents"),
    ("hydro", {}, r"there is no attention 'hydro': did you mean hydra\?"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG, ids=str)
def test_wrong_options_are_refused_with_the_cure(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_attention(name, 16, 2, (5, 7), **options)


def test_polaformer_refuses_heads_with_an_odd_number_of_channels() -> None:
    with pytest.raises(ValueError, match="an even number of channels a head, got 6 / 2"):
        create_attention("polaformer", 6, 2, (5, 7))


@pytest.fixture
def average() -> Iterator[str]:
    @register_attention("average", rank_restoration=True)
    class Average(GridAttention):
        def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Any) -> Tensor:
            return v.mean(dim=2, keepdim=True).expand_as(q)

    yield "average"
    unregister_attention("average")


def test_your_own_attention_has_all_that_the_others_have(average: str) -> None:
    assert average in list_attentions()
    layer = make(average, num_prefix_tokens=1, key_encoding=True)
    x = tokens(layer, (4, 6))
    value = layer.qkv(x)[..., 32:]
    out = value.mean(dim=1, keepdim=True).expand_as(value).clone()
    grid_values = value[:, 1:].reshape(2, 4, 6, 2, 8).permute(0, 3, 4, 1, 2).flatten(0, 1)
    out[:, 1:] += layer.dwc(grid_values).reshape(2, 16, 24).transpose(1, 2)
    torch.testing.assert_close(layer(x, (4, 6)), layer.proj(out))


def test_a_name_is_taken_once_but_a_notebook_may_run_again(average: str) -> None:
    with pytest.raises(ValueError, match="'average' is Average already: choose another name"):
        register_attention(average)(type("Other", (GridAttention,), {}))
    taken = type(create_attention_core(average, 16, 2, (5, 7)))
    assert register_attention(average)(taken) is taken


def test_an_attention_from_outside_passes_options_on_in_one_line() -> None:
    @register_attention("outside")
    class Outside(GridAttention):
        def __init__(self, *args: Any, mine: bool = True, **options: Any) -> None:
            super().__init__(*args, **options)
            self.mine = mine

        def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Any) -> Tensor:
            return v if self.mine else -v

    try:
        x = torch.randn(2, 35, 16)
        layers = [
            create_attention("outside", 16, 2, (5, 7), mine=mine, qkv_bias=False, proj_bias=False) for mine in (True, False)
        ]
        layers[1].load_state_dict(layers[0].state_dict())
        assert torch.equal(layers[0](x), -layers[1](x))
        model = timm.create_model("flatten_deit_tiny_patch16_224", attention="outside", attention_args={"mine": False}, depth=1)
        assert model.blocks[0].attn.mine is False
        with pytest.raises(ValueError, match="has no option 'mein': did you mean mine"):
            create_attention("outside", 16, 2, (5, 7), mein=True)
    finally:
        unregister_attention("outside")


def test_an_attention_that_passes_no_options_on_is_refused_with_the_line_to_write() -> None:
    class Closed(GridAttention):
        def __init__(self, dim: int, num_heads: int, grid_size: Any, *, mine: bool = True, qkv_bias: bool = True) -> None:
            super().__init__(dim, num_heads, grid_size, qkv_bias=qkv_bias)

    with pytest.raises(ValueError, match=r"Closed does not take context_dim, .*: write def __init__\(.*\*\*options\) and pass"):
        register_attention("closed")(Closed)
    assert "closed" not in list_attentions()


@pytest.mark.parametrize("name", list_attentions())
def test_a_misspelt_option_is_a_type_error_of_the_class(name: str) -> None:
    with pytest.raises(TypeError, match="has no option 'kernel_sise': did you mean kernel_size"):
        type(create_attention(name, 16, 2, (5, 7)))(16, 2, (5, 7), kernel_sise=3)  # type: ignore[call-arg]


def test_the_options_of_every_attention_are_one_list() -> None:
    assert list(GridOptions.__annotations__) == list(GridAttention.defaults)
    for name in list_attentions():
        layer = create_attention(name, 16, 2, (5, 7))
        known = inspect.signature(type(layer)).parameters
        assert {option: known[option].default for option in GridOptions.__annotations__} == layer.defaults


@pytest.mark.parametrize(
    ("name", "own"), [("agent", ("query_bias", "key_bias")), ("inline", ("residual",)), ("polaformer", ("g",))]
)
def test_what_a_design_learns_stands_before_the_projections_as_saved_optimizers_count(name: str, own: Sequence[str]) -> None:
    modules = [part for part, _ in create_attention(name, 16, 2, (5, 7)).named_children()]
    convolution = [] if name == "inline" else ["dwc"]
    assert modules[: modules.index("qkv")] == [*convolution, *own]


def test_a_default_of_no_option_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("GridAttention has no option focus to set a default of")):
        register_attention("nothing", focus=3)(GridAttention)
    assert "nothing" not in list_attentions()


def named(name: str) -> Any:
    """A function by the name, as an attention's method."""
    return lambda self, q, k, v, layout: {"flat": v.transpose(1, 2), "nothing": None, "wide": q @ k.transpose(2, 3)}[name]


UNFIT: list[tuple[type, str]] = [
    (type("Silent", (GridAttention,), {}), "Silent does not say how it attends: write def mix(self, q, k, v, layout)"),
    (
        type("Short", (GridAttention,), {"mix": lambda self, q, k, v: v}),
        "Short has mix(self, q, k, v): write def mix(self, q, k, v, layout), which returns [batch, heads, queries, channels]",
    ),
    (type("Other", (), {}), "is no attention over a grid: write class Mine(GridAttention)"),
    (
        type("Typo", (GridAttention,), {"mix": named("flat"), "defaults": {"kernel_sise": 3}}),
        "Typo has no option kernel_sise to set a default of",
    ),
]


@pytest.mark.parametrize(("attention", "message"), UNFIT, ids=[attention.__name__ for attention, _ in UNFIT])
def test_a_class_that_cannot_attend_is_refused_when_it_is_registered(attention: type, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        register_attention("unfit")(attention)
    assert "unfit" not in list_attentions()


@pytest.mark.parametrize("returned", ["flat", "nothing"])
def test_a_mix_that_returns_something_else_is_told_what_to_return(returned: str) -> None:
    layer = type("Mine", (GridAttention,), {"mix": named(returned)})(16, 2, (5, 7))
    came = "[3, 35, 2, 8]" if returned == "flat" else "NoneType"
    message = f"Mine.mix must return [batch, heads, queries, channels], here [3, 2, 35, 8], got {came}"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(torch.randn(3, 35, 16))


def test_a_matrix_of_another_shape_is_told_the_right_one() -> None:
    layer = type("Mine", (GridAttention,), {"mix": named("flat"), "weights": named("flat")})(16, 2, (5, 7))
    message = "Mine.weights must return [batch, groups, queries, keys], here [3, 35, 35, 35], got [3, 35, 2, 8]"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.decompose(torch.randn(3, 35, 16))
    assert type("Mine", (GridAttention,), {"weights": named("wide")})(16, 2, (5, 7)).decompose(torch.randn(3, 35, 16))


def test_a_class_is_refused_for_its_name(average: str) -> None:
    attention: Any = type(make(average))
    with pytest.raises(ValueError, match=r"an attention is chosen by its name, got <class .*Average'>: pass 'average'"):
        timm.create_model("flatten_deit_tiny_patch16_224", attention=attention, depth=1)
    with pytest.raises(ValueError, match=r'write @register_attention\("mine"\) above a class of yours and pass "mine"'):
        create_attention(GridAttention, 16, 2, (5, 7))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'takes a name: write @register_attention\("mine"\) above the class'):
        register_attention(attention)


def test_options_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ValueError, match=r"attention_args must hold options by name, .*, got \['norm'\]"):
        timm.create_model("flatten_deit_tiny_patch16_224", attention_args=["norm"], depth=1)


def test_forgetting_what_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no attention 'nothing'"):
        unregister_attention("nothing")


def test_an_attention_says_what_it_lacks(average: str) -> None:
    layer = make(average)
    with pytest.raises(ValueError, match=r"Average shows no matrix: write weights\(self, q, k, v, layout\)"):
        layer.decompose(tokens(layer, (5, 7)))
    base = GridAttention(16, 2, (5, 7))
    q = torch.randn(1, 35, 16)
    with pytest.raises(NotImplementedError, match=r"GridAttention must say how it attends: write mix"):
        base.attend(q, q, q, Layout((5, 7), (5, 7)))
