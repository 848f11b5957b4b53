"""The focused function: norm, direction, homogeneity, and Proposition 1 of the paper."""

# B batch, H heads, N tokens, D channels per head.

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flatten_transformer.ops import focused, reference
from flatten_transformer.ops.checks import Norm
from flatten_transformer.ops.feature_maps import power
from tests.helpers import TOLERANCES, relative_error

POWERS = st.one_of(st.integers(1, 40).map(float), st.floats(1.0, 40.0))
NORMS = st.sampled_from(["joint", "per_head"])
TOKENS = st.lists(st.floats(1e-3, 1e3), min_size=12, max_size=12).map(lambda values: as_tokens(values, heads=2))


def as_tokens(values: list[float], heads: int = 1) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, heads, -1, len(values) // heads)


@st.composite
def pairs_of_vectors(draw: st.DrawFn, same_peak: bool) -> tuple[Tensor, Tensor]:
    """Non-negative vectors with unique largest entries, at one place or at two."""
    channels = draw(st.integers(2, 8))
    entries = st.lists(st.floats(0.05, 0.9), min_size=channels, max_size=channels)
    first, second = draw(entries), draw(entries)
    place = draw(st.integers(0, channels - 1))
    other = place if same_peak else draw(st.integers(0, channels - 1).filter(lambda chosen: chosen != place))
    first[place], second[other] = 1.0, 1.0
    return as_tokens(first) * draw(st.floats(0.1, 10)), as_tokens(second) * draw(st.floats(0.1, 10))


@settings(max_examples=30)
@given(pairs_of_vectors(same_peak=True))
def test_some_power_draws_vectors_with_the_same_largest_entry_together(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    product = float((x * y).sum())
    assume(product < 0.999 * float(x.norm() * y.norm()))  # parallel vectors cannot come closer
    assert any(float((focused(x, p) * focused(y, p)).sum()) > product for p in (1.5, 2.0, 4.0, 16.0, 64.0, 256.0))


@settings(max_examples=30)
@given(pairs_of_vectors(same_peak=False))
def test_some_power_drives_vectors_with_different_largest_entries_apart(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    product = float((x * y).sum())
    assert any(float((focused(x, p) * focused(y, p)).sum()) < product for p in (1.5, 2.0, 4.0, 16.0, 64.0, 256.0))


@settings(max_examples=30)
@given(TOKENS)
def test_a_large_power_leaves_the_largest_channel_alone(x: Tensor) -> None:
    x[..., 0] = 1.2 * x.amax()
    limit = torch.zeros_like(x)
    limit[..., 0] = x.norm(dim=-1)
    assert relative_error(focused(x, 512.0, norm="per_head"), limit) < 1e-12


@settings(max_examples=30)
@given(TOKENS, POWERS, NORMS)
def test_norms_are_preserved(x: Tensor, p: float, norm: Norm) -> None:
    dims = (1, 3) if norm == "joint" else (3,)
    assert relative_error(focused(x, p, norm=norm).norm(dim=dims), x.norm(dim=dims)) < 1e-13


@settings(max_examples=30)
@given(TOKENS, POWERS, NORMS, st.floats(1e-6, 1e6))
def test_a_factor_passes_through(x: Tensor, p: float, norm: Norm, factor: float) -> None:
    assert relative_error(focused(factor * x, p, norm=norm), factor * focused(x, p, norm=norm)) < 1e-13


@settings(max_examples=30)
@given(TOKENS, POWERS, NORMS)
def test_the_fast_form_is_equation_6(x: Tensor, p: float, norm: Norm) -> None:
    assert relative_error(focused(x, p, norm=norm), reference.focused_function(x, p, norm=norm)) < 1e-12


@settings(max_examples=30)
@given(TOKENS, NORMS)
def test_power_one_is_the_identity(x: Tensor, norm: Norm) -> None:
    assert torch.equal(focused(x, 1.0, norm=norm), x)


@settings(max_examples=30)
@given(TOKENS, POWERS)
def test_the_order_of_the_channels_is_kept(x: Tensor, p: float) -> None:
    ascending = x.sort(dim=-1).values
    assert (focused(ascending, p).diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("norm", ["joint", "per_head"])
@pytest.mark.parametrize("p", [1.0, 3.0, 2.5, 32.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_token_of_zeros_stays_zero_with_finite_gradients(dtype: torch.dtype, p: float, norm: Norm) -> None:
    x = torch.zeros(1, 2, 3, 4, dtype=dtype, requires_grad=True)
    y = focused(x, p, norm=norm)
    assert y.abs().max() == 0
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("p", range(1, 65))
def test_products_and_pow_agree(p: int) -> None:
    x = torch.rand(1000, dtype=torch.float64, requires_grad=True)
    by_products, by_pow = power(x, p), x.pow(float(p))
    assert relative_error(by_products, by_pow) < 1e-13
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (by_products, by_pow)]
    assert relative_error(gradients[0], gradients[1]) < 1e-13


@pytest.mark.parametrize("p", [8, 16, 64])
def test_whole_powers_up_to_64_go_by_products(p: int) -> None:
    x = torch.rand(1000, dtype=torch.float64)
    squared = x
    for _ in range(p.bit_length() - 1):
        squared = squared * squared
    assert torch.equal(power(x, p), squared)
    assert not torch.equal(x ** float(p), squared)  # rounding tells them apart


@pytest.mark.parametrize("p", [1.5, 6.5, 65.0, 65.5, 1000.0])
def test_powers_that_are_not_small_and_whole_go_by_pow(p: float) -> None:
    x = torch.rand(100, dtype=torch.float64)
    assert torch.equal(power(x, p), x**p)


@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_a_whole_power_may_be_int_or_float(p: int) -> None:
    x = torch.rand(2, 3, 4, 5)
    assert torch.equal(focused(x, p), focused(x, float(p)))


@settings(max_examples=30)
@given(TOKENS, st.sampled_from([2.0, 3.0, 4.5]), NORMS)
def test_the_gradient_may_skip_the_peak(x: Tensor, p: float, norm: Norm) -> None:
    upstream = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape_as(x)
    fast, literal = x.clone().requires_grad_(), x.clone().requires_grad_()
    (came,) = torch.autograd.grad(focused(fast, p, norm=norm), fast, upstream)
    (wanted,) = torch.autograd.grad(reference.focused_function(literal, p, norm=norm), literal, upstream)
    torch.testing.assert_close(came, wanted, rtol=1e-11, atol=1e-12)


def test_the_gradient_takes_no_way_through_the_peak() -> None:
    waiting, names = [focused(torch.rand(1, 2, 3, 4, requires_grad=True), 3.0).grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(node.name())
            waiting.extend(before for before, _ in node.next_functions)
    assert "LinalgVectorNormBackward0" in names
    assert "AmaxBackward0" not in names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_no_magnitude_over_or_underflows(dtype: torch.dtype, magnitude: float) -> None:
    x = torch.rand(1, 2, 50, 16, dtype=dtype) + 0.1
    came = focused(x * magnitude, 8.0).double() / magnitude
    assert relative_error(came, reference.focused_function(x.double(), 8.0)) < 2 * TOLERANCES[dtype]
