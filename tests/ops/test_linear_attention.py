"""Focused linear attention: every path equals the float64 oracle, output and every gradient; and its laws."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flatten_transformer import focused_linear_attention
from flatten_transformer.ops import focused, linear_attention, reference
from flatten_transformer.ops.checks import Norm
from tests.helpers import TOLERANCES, Case, attention_terms, relative_error

pytestmark = pytest.mark.usefixtures("backend")

MODULE = import_module("flatten_transformer.ops.linear_attention")  # the name in ops is the function
NAMES = ("output", "query", "key", "value", "temperature")
ALL_DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def cases(tokens: st.SearchStrategy[int], channels: st.SearchStrategy[int], largest_power: int = 8) -> st.SearchStrategy[Case]:
    whole, real = st.integers(1, largest_power).map(float), st.floats(1.0, min(6.5, largest_power))
    return st.builds(
        Case,
        seed=st.integers(0, 10**6),
        batch=st.integers(1, 2),
        heads=st.integers(1, 3),
        queries=tokens,
        keys=tokens,
        key_channels=channels,
        value_channels=channels,
        focusing_factor=st.one_of(whole, real),
        norm=st.sampled_from(["joint", "per_head"]),
        masked=st.booleans(),
        with_temperature=st.booleans(),
    )


def oracle(case: Case, inputs: list[Tensor]) -> list[Tensor]:
    return case.run(reference.focused_linear_attention, [tensor.double() for tensor in inputs])


# Against the oracle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@given(case=cases(st.integers(32, 99), st.integers(16, 64)))
@settings(max_examples=25)
def test_output_and_every_gradient_equal_the_oracle(dtype: torch.dtype, case: Case) -> None:
    """Measured over 1,500 such draws in float32: 9e-7 at worst.

    A temperature's gradient is one sum over all tokens of numerator minus normaliser, which nearly cancel in some
    draws: its error is measured against the numerator's part where that is larger.
    """
    inputs = case.inputs(dtype)
    came, wanted = case.run(focused_linear_attention, inputs), oracle(case, inputs)
    for name, one, other in zip(NAMES[:4], came, wanted, strict=False):
        assert relative_error(one, other) <= TOLERANCES[dtype], name
    if case.with_temperature:
        numerator = case.run(attention_terms, [tensor.double() for tensor in inputs])[4]
        distance = float((came[4].double() - wanted[4]).norm())
        assert distance <= TOLERANCES[dtype] * max(float(wanted[4].norm()), float(numerator.norm())), "temperature"


TINY_AND_ODD = st.sampled_from([1, 2, 3, 5, 7, 16, 33, 63])


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@given(case=cases(TINY_AND_ODD, TINY_AND_ODD))
@settings(max_examples=40)
@example(case=Case(0, 1, 1, 1, 1, 1, 1))
@example(case=Case(0, 1, 1, 1, 63, 1, 1, 8.0, "per_head", True, True))
@example(case=Case(0, 2, 3, 63, 1, 33, 5, 6.5, "joint", True, True))
@example(case=Case(0, 2, 1, 2, 3, 63, 33, 4.0, "joint", True, True))
def test_tiny_and_odd_sizes_equal_the_oracle_where_terms_cancel_too(dtype: torch.dtype, case: Case) -> None:
    """With one key, one channel or one token true gradients vanish: what remains is the rounding of terms that cancel.

    So the error is measured against the larger of the gradient and those terms (see attention_terms), and what lies
    below the dtype's range does not count. Measured over 6,000 such draws in float32: 9.5e-7 at worst.
    """
    inputs = case.inputs(dtype)
    query, key, value, *temperature = (tensor.double() for tensor in inputs)
    terms = case.run(attention_terms, [query, key, value.abs(), *temperature], case.upstream().abs())
    came, wanted = case.run(focused_linear_attention, inputs), oracle(case, inputs)
    # the sums are float32: a product below 1e-38 is lost, and the normaliser's eps multiplies it by 1e6
    smallest = max(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, 1e-32)
    for name, one, other, term in zip(NAMES, came, wanted, terms, strict=False):
        size = max(float(other.norm()), float(term.norm()))
        error = float((one.double() - other).norm())
        assert error <= TOLERANCES[dtype] * size + smallest * one.numel(), name


def test_both_orders_of_the_products_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, 2, 3, 17, 23, 19, 29, 3.0, masked=True, with_temperature=True)
    inputs = case.inputs(torch.float64)
    results = []
    for quadratic in (True, False):
        monkeypatch.setattr(MODULE, "_quadratic_is_cheaper", lambda *_, q=quadratic: q)
        results.append(case.run(partial(focused_linear_attention, backend="portable"), inputs))
    for quadratic_result, linear_result in zip(*results, strict=True):
        assert relative_error(quadratic_result, linear_result) <= TOLERANCES[torch.float64]


@given(*[st.integers(1, 300)] * 4)
def test_the_cheaper_order_of_the_products_is_taken(queries: int, keys: int, key_channels: int, value_channels: int) -> None:
    quadratic = queries * keys * key_channels + queries * keys * value_channels
    linear = keys * key_channels * value_channels + queries * key_channels * value_channels
    taken = quadratic if MODULE._quadratic_is_cheaper(queries, keys, key_channels, value_channels) else linear
    assert taken == min(quadratic, linear)


@pytest.mark.parametrize("focusing_factor", [1, 3])
def test_the_plain_linear_attention_is_the_oracle_without_the_feature_map(focusing_factor: int) -> None:
    query, key, value = torch.rand(3, 2, 3, 40, 16, dtype=torch.float64).unbind(0)
    wanted = reference.focused_linear_attention(query, key, value, focusing_factor=focusing_factor)
    q, k = (focused(x + 1e-6, focusing_factor) for x in (query, key))
    assert relative_error(linear_attention(q, k, value), wanted) <= TOLERANCES[torch.float64]


def test_strided_inputs_give_what_contiguous_ones_give() -> None:
    packed = torch.randn(2, 50, 3, 4, 16, dtype=torch.float64)  # [B, N, 3, H, D], as projections leave it
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    assert not query.is_contiguous()
    strided = focused_linear_attention(query, key, value)
    contiguous = focused_linear_attention(query.contiguous(), key.contiguous(), value.contiguous())
    assert relative_error(strided, contiguous) <= TOLERANCES[torch.float64]


def test_inputs_are_not_written_to() -> None:
    case = Case(4, 2, 3, 20, 20, 16, 16, masked=True, with_temperature=True)
    inputs = case.inputs()
    focused_linear_attention(*inputs[:3], temperature=inputs[3], **case.options())
    for now, before in zip(inputs, case.inputs(), strict=True):
        assert torch.equal(now, before)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_output_has_the_dtype_of_the_query(dtype: torch.dtype) -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 4).to(dtype).unbind(0)
    assert focused_linear_attention(query, key, value).dtype == dtype
    assert linear_attention(query.abs(), key.abs(), value).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_run_in_float32(dtype: torch.dtype) -> None:
    query, key, value = torch.randn(3, 1, 2, 500, 16).to(dtype).unbind(0)
    in_half = focused_linear_attention(query, key, value)
    in_float = focused_linear_attention(query.float(), key.float(), value.float())
    assert torch.equal(in_half, in_float.to(dtype))
    q, k = query.abs(), key.abs()
    assert torch.equal(linear_attention(q, k, value), linear_attention(q.float(), k.float(), value.float()).to(dtype))


@pytest.mark.parametrize("keys", [500, 3], ids=["linear order", "quadratic order"])
def test_autocast_does_not_round_the_sums(keys: int) -> None:
    case = Case(5, 1, 2, keys, keys, 16, 16, with_temperature=True)

    def under_autocast(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # the backward pass runs outside, as PyTorch demands
            out = focused_linear_attention(*args, **kwargs)
            assert torch.is_autocast_enabled("cpu")
            return out

    plain = case.run(focused_linear_attention, case.inputs())
    for came, wanted in zip(case.run(under_autocast, case.inputs()), plain, strict=True):
        assert torch.equal(came, wanted)
    q, k, v = torch.rand(3, 1, 2, keys, 16).unbind(0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = linear_attention(q, k, v)
    assert torch.equal(inside, linear_attention(q, k, v))


# Laws -------------------------------------------------------------------------------------------------------------

SMALL = st.integers(1, 20)


@given(case=cases(SMALL, SMALL), scale=st.floats(1e-2, 1e2))
def test_scaling_a_query_changes_nothing(case: Case, scale: float) -> None:
    query, key, value, *rest = case.inputs(torch.float64)
    query[..., 0] = query[..., 0].abs() + 0.1  # a query with no positive channel has no direction
    key[..., 0] = key[..., 0].abs() + 0.1
    factors = scale * (0.5 + torch.rand(case.batch, 1, case.queries, 1, dtype=torch.float64))
    options = {**case.options(), "temperature": rest[0] if rest else None, "eps": 1e-30}
    came = focused_linear_attention(query * factors, key, value, **options)
    assert relative_error(came, focused_linear_attention(query, key, value, **options)) < 1e-10


@given(case=cases(SMALL, SMALL))
def test_the_order_of_the_keys_does_not_matter(case: Case) -> None:
    query, key, value, *rest = case.inputs(torch.float64)
    order = torch.randperm(case.keys, generator=torch.Generator().manual_seed(case.seed))
    options = {**case.options(), "temperature": rest[0] if rest else None}
    wanted = focused_linear_attention(query, key, value, **options)
    if case.masked:
        options["attn_mask"] = options["attn_mask"][..., order]
    came = focused_linear_attention(query, key[:, :, order], value[:, :, order], **options)
    torch.testing.assert_close(came, wanted, rtol=1e-10, atol=1e-12)


@given(case=cases(SMALL, SMALL))
def test_the_order_of_the_queries_is_the_order_of_the_outputs(case: Case) -> None:
    query, key, value, *rest = case.inputs(torch.float64)
    order = torch.randperm(case.queries, generator=torch.Generator().manual_seed(case.seed))
    options = {**case.options(), "temperature": rest[0] if rest else None}
    wanted = focused_linear_attention(query, key, value, **options)[:, :, order]
    torch.testing.assert_close(
        focused_linear_attention(query[:, :, order], key, value, **options), wanted, rtol=1e-10, atol=1e-12
    )


@given(case=cases(SMALL, SMALL))
def test_outputs_are_weighted_means_of_the_values(case: Case) -> None:
    query, key, value, *rest = case.inputs(torch.float64)
    options = {**case.options(), "temperature": rest[0] if rest else None}
    out = focused_linear_attention(query, key, torch.ones_like(value), **options)
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-12
    doubled = focused_linear_attention(query, key, 2 * value, **options)
    torch.testing.assert_close(doubled, 2 * focused_linear_attention(query, key, value, **options))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e4])
@pytest.mark.parametrize("norm", ["joint", "per_head"])
def test_masked_keys_might_as_well_not_be_there(dtype: torch.dtype, garbage: float, norm: Norm) -> None:
    case = Case(6, 3, 2, 9, 14, 8, 8, 3.0, norm, masked=True, with_temperature=True)
    mask = case.mask()
    assert mask is not None
    assert not mask.all()
    query, key, value, temperature = case.inputs(dtype)
    hidden = ~mask.transpose(2, 3)
    dirty = [query, key.masked_fill(hidden, garbage), value.masked_fill(hidden, garbage), temperature]
    came = case.run(focused_linear_attention, dirty)
    for gradient in came[2:4]:  # of key and value
        assert gradient.masked_select(hidden).abs().max() == 0
    for sample in range(case.batch):  # each sample has its own mask, so truncate one by one
        kept = mask[sample, 0, 0]
        one = [query[[sample]], key[[sample]][:, :, kept], value[[sample]][:, :, kept], temperature]
        for tensor in one:
            tensor.requires_grad_()
        out = focused_linear_attention(*one[:3], temperature=temperature, norm=norm)
        gradients = torch.autograd.grad(out, one[:3], case.upstream()[[sample]].to(dtype))
        wanted = (out, *gradients)
        masked = (came[0][[sample]], came[1][[sample]], came[2][[sample]][:, :, kept], came[3][[sample]][:, :, kept])
        for one_came, one_wanted in zip(masked, wanted, strict=True):
            assert relative_error(one_came, one_wanted) <= TOLERANCES[dtype]


def test_a_mask_may_be_shared_by_the_batch() -> None:
    case = Case(7, 3, 2, 9, 14, 8, 8)
    query, key, value = case.inputs(torch.float64)
    mask = torch.rand(1, 1, 1, 14) < 0.6
    shared = focused_linear_attention(query, key, value, mask)
    assert torch.equal(shared, focused_linear_attention(query, key, value, mask.expand(3, 1, 1, 14)))


def test_a_mask_of_all_keys_changes_nothing() -> None:
    case = Case(8, 2, 2, 9, 14, 8, 8)
    query, key, value = case.inputs(torch.float64)
    full = focused_linear_attention(query, key, value, torch.ones(2, 1, 1, 14, dtype=torch.bool))
    assert relative_error(full, focused_linear_attention(query, key, value)) <= TOLERANCES[torch.float64]


@pytest.mark.parametrize("queries", [3, 40], ids=["matrix first", "context first"])
def test_the_plain_linear_attention_takes_masks_too(queries: int) -> None:
    leaves = q, k, v = [torch.rand(2, 3, tokens, 16, dtype=torch.float64) for tokens in (queries, 14, 14)]
    kept = torch.arange(14) % 3 > 0
    k[:, :, ~kept] = v[:, :, ~kept] = torch.nan
    for leaf in leaves:
        leaf.requires_grad_()
    out, expected = linear_attention(q, k, v, kept[None, None, None]), linear_attention(q, k[:, :, kept], v[:, :, kept])
    assert relative_error(out, expected) <= TOLERANCES[torch.float64]
    gradients, of_kept = (torch.autograd.grad(y.square().sum(), leaves) for y in (out, expected))
    for gradient, other in zip(gradients, of_kept, strict=True):
        assert relative_error(gradient, other) <= TOLERANCES[torch.float64]
    assert not any(gradient[:, :, ~kept].any() for gradient in gradients[1:])


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_sample_without_keys_gives_zeros_and_zero_gradients(dtype: torch.dtype) -> None:
    query, key, value = torch.randn(3, 2, 2, 5, 4).to(dtype).unbind(0)
    key[0] = float("nan")
    leaves = [x.clone().requires_grad_() for x in (query, key, value, torch.ones(2, 4, dtype=dtype))]
    mask = torch.tensor([False, True]).reshape(2, 1, 1, 1).expand(2, 1, 1, 5)
    out = focused_linear_attention(leaves[0], leaves[1], leaves[2], mask, temperature=leaves[3])
    assert out[0].abs().max() == 0
    assert out[1].abs().max() > 0
    *gradients, of_temperature = torch.autograd.grad(out.sum(), leaves)
    assert of_temperature.isfinite().all()
    for gradient in gradients:
        assert gradient[0].abs().max() == 0
        assert gradient.isfinite().all()


def test_heads_are_independent_with_a_norm_per_head_and_not_with_the_joint_norm() -> None:
    query, key, value = torch.randn(3, 1, 3, 20, 16, dtype=torch.float64).unbind(0)
    louder = key.clone()
    louder[:, 0] *= torch.linspace(1, 100, 20, dtype=torch.float64)[:, None]
    changed = {}
    for norm in ("per_head", "joint"):
        before = focused_linear_attention(query, key, value, norm=norm)
        after = focused_linear_attention(query, louder, value, norm=norm)
        changed[norm] = [not torch.equal(before[:, head], after[:, head]) for head in range(3)]
    assert changed == {"per_head": [True, False, False], "joint": [True, True, True]}


OPTIONS: list[dict[str, Any]] = [
    {"focusing_factor": 4.0},
    {"norm": "per_head"},
    {"eps": 1e-3},
    {"temperature": torch.linspace(0.5, 2, 3 * 16, dtype=torch.float64).reshape(3, 16)},
    {"attn_mask": (torch.arange(20) % 2 == 0)[None, None, None, :]},
]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: next(iter(option)))
def test_every_option_changes_the_output(option: dict[str, Any]) -> None:
    query, key, value = torch.randn(3, 1, 3, 20, 16, dtype=torch.float64).unbind(0)
    plain = focused_linear_attention(query, key, value)
    assert relative_error(focused_linear_attention(query, key, value, **option), plain) > 1e-4
