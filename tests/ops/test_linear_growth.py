"""Memory grows linearly: a hook on every operation sees no tensor of the size of the query × key matrix."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flatten_transformer import FocusedLinearAttention, focused_linear_attention
from flatten_transformer.ops import reference
from tests.helpers import Case, TensorsMade

pytestmark = pytest.mark.usefixtures("backend")

LONG = Case(10, 1, 2, 2048, 2048, 16, 16, with_temperature=True)
PATHS: dict[str, dict[str, Any]] = {
    "joint norm": {},
    "norm per head": {"norm": "per_head"},
    "masked": {"masked": True},
    "any real power": {"focusing_factor": 2.5},
    "no focusing": {"focusing_factor": 1},
    "more queries than keys": {"queries": 4096, "keys": 1024},
    "more keys than queries": {"queries": 1024, "keys": 4096},
}


def tensors_made(case: Case, attention: Any = focused_linear_attention, dtype: torch.dtype = torch.float32) -> TensorsMade:
    inputs = case.inputs(dtype)
    with TensorsMade() as made:
        case.run(attention, inputs)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_no_tensor_has_an_element_for_each_query_and_key(path: str, dtype: torch.dtype) -> None:
    case = dataclasses.replace(LONG, **PATHS[path])
    assert tensors_made(case, dtype=dtype).largest < case.queries * case.keys / 10


@pytest.mark.parametrize("path", PATHS)
def test_twice_the_tokens_make_twice_the_elements(path: str) -> None:
    case = dataclasses.replace(LONG, **PATHS[path])
    double = dataclasses.replace(case, queries=2 * case.queries, keys=2 * case.keys)
    assert 1.9 < tensors_made(double).total / tensors_made(case).total <= 2.1


def test_the_hook_catches_the_oracle_forward_and_backward() -> None:
    case = dataclasses.replace(LONG, queries=512, keys=512)
    assert tensors_made(case, reference.focused_linear_attention).largest >= 2 * 512 * 512
    query = torch.rand(512, 16, requires_grad=True)
    products = query @ query.T
    with TensorsMade() as made:
        products.sum().backward()
    assert made.largest >= 512 * 512


SIZES = st.integers(1, 80)


@given(st.builds(Case, st.just(0), st.just(1), st.integers(1, 3), SIZES, SIZES, SIZES, SIZES))
def test_at_no_size_a_tensor_is_larger_than_inputs_and_output(backend: str, case: Case) -> None:
    query, key, value = case.inputs()
    with TensorsMade() as made:
        out = focused_linear_attention(query, key, value)
    context = 0 if backend == "portable" else case.heads * case.key_channels * case.value_channels
    assert made.largest <= max(query.numel() + key.numel() + value.numel(), out.numel(), context)


def test_the_layer_grows_linearly_too() -> None:
    totals = []
    for grid in [(32, 64), (64, 64)]:
        layer = FocusedLinearAttention(32, 2, grid)
        x = torch.randn(1, grid[0] * grid[1], 32, requires_grad=True)
        with TensorsMade() as made:
            layer(x).sum().backward()
        totals.append(made.total)
        assert isinstance(x.grad, Tensor)
        assert made.largest < x.shape[1] ** 2 / 10
    assert totals[1] / totals[0] <= 2.1
