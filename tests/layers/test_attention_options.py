"""The options of the attentions: each changes something, and what is focused attention with switches is just that."""

import inspect
from itertools import chain
from typing import Any

import pytest
import torch

from flatten_transformer.layers import (
    FocusedLinearAttention,
    create_attention,
    create_attention_core,
)
from flatten_transformer.layers.attention.layout import Layout
from tests.helpers import relative_error
from tests.layers.attentions import EVERY, make, tokens

SWITCHES: list[dict[str, Any]] = [
    {"key_encoding": "other"},
    {"temperature": "other"},
    {"rank_restoration": "other"},
    {"qkv_bias": False},
    {"proj_bias": False},
    {"num_heads": 4},
    {"kernel_size": 1, "rank_restoration": True},
    {"num_prefix_tokens": 2, "rank_restoration": True},
]
OWN_SWITCHES: dict[str, list[dict[str, Any]]] = {
    "agent": [{"num_agents": 1}, {"position_bias": False}],
    "polaformer": [{"alpha": 1.0}, {"gated": False}],
    "focused": [{"focusing_factor": 1.0}, {"norm": "per_head"}],
}

TESTED_ELSEWHERE = {"stretch", "projections", "context_dim", "proj_drop", "sr_ratio", "device", "dtype", "backend"}


def has(layer: Any, option: str) -> bool:
    parts = {"key_encoding": "positional_encoding", "temperature": "scale", "rank_restoration": "dwc"}
    return getattr(layer, parts[option]) is not None or (option == "rank_restoration" and hasattr(layer, "residual"))


@EVERY
def test_every_option_changes_the_output(name: str) -> None:
    plain = make(name)
    x = tokens(plain, (5, 7))
    for given in [*SWITCHES, *OWN_SWITCHES.get(name, [])]:
        if name == "hydra" and "num_heads" in given:
            continue  # its heads are the channels
        options: dict[str, Any] = {
            option: not has(plain, option) if value == "other" else value for option, value in given.items()
        }
        switched = make(name, **options)
        state = switched.state_dict()
        shared = {key: value for key, value in plain.state_dict().items() if key in state and value.shape == state[key].shape}
        switched.load_state_dict(shared, strict=False)
        grid = (3, 11) if "num_prefix_tokens" in given else (5, 7)  # 2 + 33 tokens
        assert relative_error(switched(x, grid), plain(x)) > 1e-4, options


@EVERY
def test_every_option_has_a_switch(name: str) -> None:
    switched = set(chain(*SWITCHES, *chain(*OWN_SWITCHES.values())))
    options = inspect.signature(type(make(name))).parameters.keys() - {"dim", "grid_size"}
    assert options == options & (switched | TESTED_ELSEWHERE)


@pytest.mark.parametrize("name", ["elu", "agent"])
def test_stretch_changes_cross_attention_between_grids(name: str) -> None:
    layers = [make(name, context_dim=16, rank_restoration=True, stretch=stretch) for stretch in ("grid", "tokens")]
    x, context = tokens(layers[0], (9, 4)), tokens(layers[0], (5, 7))
    came, other = (layer(x, (9, 4), context=context) for layer in layers)
    assert relative_error(came, other) > 1e-3


def test_dropout_acts_in_training_alone() -> None:
    layer = make("elu", proj_drop=0.5)
    x = tokens(layer, (5, 7))
    assert torch.equal(layer(x), layer(x))
    assert 0.3 < (layer.train()(x) == 0).double().mean() < 0.7


@EVERY
def test_projections_carry_over_from_one_attention_to_another(name: str) -> None:
    state = create_attention(name, 16, 2, (5, 7)).state_dict()
    focused = FocusedLinearAttention(16, 2, (5, 7)).state_dict()
    for part in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias"):
        assert state[part].shape == focused[part].shape


@EVERY
def test_device_and_dtype_hold_for_every_parameter(name: str) -> None:
    layer = create_attention(name, 16, 2, (5, 7), num_prefix_tokens=1, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {(parameter.device.type, parameter.dtype) for parameter in layer.parameters()} == {("meta", torch.bfloat16)}


def test_what_is_focused_attention_with_switches_is_just_that() -> None:
    for name in ("focused", "relu", "enhanced"):
        assert type(create_attention(name, 16, 2, (5, 7))) is FocusedLinearAttention
    switches: dict[str, Any] = {"focusing_factor": 1, "key_encoding": False, "temperature": False}
    for name, restored in (("relu", False), ("enhanced", True)):
        switches["rank_restoration"] = restored
        layer, by_hand = make(name), FocusedLinearAttention(16, 2, (5, 7), **switches).double()
        by_hand.load_state_dict(layer.state_dict())
        x = tokens(layer, (5, 7))
        assert torch.equal(layer(x), by_hand(x))


def test_polaformer_powers_start_in_the_middle_and_stay_in_range() -> None:
    layer: Any = create_attention("polaformer", 16, 2, (5, 7), alpha=4.0)
    assert torch.equal(layer._powers(), torch.full((2, 8), 3.0))
    for power, limit in ((-100.0, 1.0), (100.0, 5.0)):
        layer.power.data.fill_(power)
        assert torch.equal(layer._powers(), torch.full((2, 8), limit))


def test_what_is_made_of_the_tokens_needs_them() -> None:
    core = create_attention_core("inline", 16, 2, (5, 7))
    q = torch.randn(1, 35, 16)
    with pytest.raises(ValueError, match="predicts its kernels from the tokens: pass x= to attend"):
        core.attend(q, q, q, Layout((5, 7), (5, 7)))
    core = create_attention_core("polaformer", 16, 2, (5, 7))
    with pytest.raises(ValueError, match="makes its gate of the tokens: pass x= to attend, or gated=False"):
        core.attend(q, q, q, Layout((5, 7), (5, 7)))
