"""The registry: names, options, errors that carry the cure, and attentions from outside."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
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


def test_a_default_of_no_option_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("GridAttention has no option focus to set a default of")):
        register_attention("nothing", focus=3)(GridAttention)
    assert "nothing" not in list_attentions()


def test_forgetting_what_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no attention 'nothing'"):
        unregister_attention("nothing")


def test_an_attention_says_what_it_lacks(average: str) -> None:
    layer = make(average)
    with pytest.raises(NotImplementedError, match=r"Average shows no matrix: write weights\(self, q, k, v, layout\)"):
        layer.decompose(tokens(layer, (5, 7)))
    base = GridAttention(16, 2, (5, 7))
    q = torch.randn(1, 35, 16)
    with pytest.raises(NotImplementedError, match=r"GridAttention must say how it attends: write mix"):
        base.attend(q, q, q, (5, 7), (5, 7))
