"""Every design is its literal matrix times the values, forward and backward, at any size."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flatten_transformer.layers.attention.agent import pool_agents
from tests.helpers import TensorsMade, output_and_gradients, relative_error
from tests.layers.designs import DESIGNS, Design, call, draw_mask

EVERY = pytest.mark.parametrize("name", DESIGNS)
LINEAR = pytest.mark.parametrize("name", [name for name in DESIGNS if name != "softmax"])
# Relative errors against the float64 oracle with the same rounded inputs. Measured in these tests, the worst of all designs,
# outputs and gradients: 4.5e-14 (float64), 4.1e-7 (float32), 2.8e-3 (bfloat16), 3.5e-4 (float16).
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1.2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def both_ways(design: Design, tensors: dict[str, Tensor], mask: Tensor | None, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return output and gradients: of the design in ``dtype``, and of the oracle in float64 from the same numbers."""
    rounded = [tensor.to(dtype) for tensor in tensors.values()]
    names = list(tensors)
    upstream = torch.randn(tensors["query"].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    actual = output_and_gradients(call(design.attention, names, mask), rounded, upstream)
    expected = output_and_gradients(call(design.by_the_book, names, mask), [x.double() for x in rounded], upstream)
    return list(zip(actual, expected, strict=True))


@EVERY
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.data())
@settings(max_examples=25)
def test_output_and_every_gradient_are_the_oracles(
    name: str, batch: int, heads: int, queries: int, keys: int, half: int, masked: bool, data: st.DataObject
) -> None:
    design = Design(name, heads, queries, keys, 2 * half)
    tensors = design.draw(batch, seed=data.draw(st.integers(0, 10**6)))
    mask = draw_mask(batch, tensors["key"].shape[2]) if masked else None
    names = ["output", *tensors]
    for part, (actual, expected) in zip(names, both_ways(design, tensors, mask, torch.float64), strict=True):
        # with one key or channel gradients cancel: errors are measured beside 1, the size of the inputs
        assert float((actual - expected).norm()) <= TOLERANCES[torch.float64] * max(1.0, float(expected.norm())), part


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_every_dtype_is_the_oracle_to_its_precision(name: str, dtype: torch.dtype, masked: bool) -> None:
    design = Design(name, 2, 63, 63, 16)
    tensors = design.draw(2)
    mask = draw_mask(2, 63) if masked else None
    for part, (actual, expected) in zip(["output", *tensors], both_ways(design, tensors, mask, dtype), strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, expected) <= TOLERANCES[dtype], part


@EVERY
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e6])
def test_what_lies_in_masked_keys_never_matters(name: str, garbage: float) -> None:
    design = Design(name, 2, 9, 9, 4)
    tensors = design.draw(2)
    mask = draw_mask(2, 9)
    hidden = ~mask.transpose(2, 3)
    dirty = tensors | {part: tensors[part].masked_fill(hidden, garbage) for part in ("key", "value")}
    upstream = torch.randn_like(tensors["query"])
    clean, actual = (
        output_and_gradients(call(design.attention, list(tensors), mask), list(given.values()), upstream)
        for given in (tensors, dirty)
    )
    for part, one, other in zip(["output", *tensors], actual, clean, strict=True):
        assert torch.equal(one, other), part


@EVERY
def test_masked_keys_are_as_good_as_absent(name: str) -> None:
    own = {"position_bias": False} if name == "agent" else {}  # which depends on where the tokens lie
    long, short = Design(name, 2, 8, 9, 4, **own), Design(name, 2, 6 if name == "angular" else 8, 6, 4, **own)
    tensors = long.draw(1)
    mask = torch.arange(tensors["key"].shape[2])[None, None, None, :] < 6
    shorter = {part: x[:, :, :6] if part in ("key", "value") else x for part, x in tensors.items()}
    rows = slice(None)
    if name == "angular":
        shorter["query"], rows = shorter["query"][:, :, :6], slice(6)
    actual = call(long.attention, list(tensors), mask)(*tensors.values())
    expected = call(short.attention, list(shorter), None)(*shorter.values())
    torch.testing.assert_close(actual[:, :, rows], expected)


@EVERY
def test_a_sample_without_keys_attends_to_nothing(name: str) -> None:
    design = Design(name, 2, 9, 9, 4)
    tensors = design.draw(2)
    mask = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 9)
    upstream = torch.randn_like(tensors["query"])
    out, *gradients = output_and_gradients(call(design.attention, list(tensors), mask), list(tensors.values()), upstream)
    assert out[0].norm() > 0
    assert out[1].norm() == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-2, 30.0])
def test_nothing_overflows_in_half_precision(name: str, dtype: torch.dtype, size: float) -> None:
    design = Design(name, 2, 200, 200, 8)
    rounded = {part: (x * size if part in ("query", "key") else x).to(dtype) for part, x in design.draw(1).items()}
    upstream = torch.randn(1, 2, 200, 8)
    for part in output_and_gradients(call(design.attention, list(rounded), None), list(rounded.values()), upstream):
        assert part.isfinite().all()


@LINEAR
@pytest.mark.parametrize("masked", [False, True])
def test_no_tensor_has_an_element_for_each_query_and_key(name: str, masked: bool) -> None:
    totals = []
    for count in (1024, 2048):
        design = Design(name, 2, count, count, 16)
        tensors = {part: x.float().requires_grad_() for part, x in design.draw(1).items()}
        mask = draw_mask(1, count) if masked else None
        with TensorsMade() as made:
            call(design.attention, list(tensors), mask)(*tensors.values()).sum().backward()
        assert made.largest < count**2 / 10
        totals.append(made.total)
    assert 1.9 < totals[1] / totals[0] <= 2.1


@LINEAR  # of softmax PyTorch's kernels round the inputs, and sum in float32
def test_autocast_does_not_round_the_sums(name: str) -> None:
    design = Design(name, 2, 40, 40, 8)
    tensors = {part: x.float() for part, x in design.draw(2).items()}
    plain = call(design.attention, list(tensors), None)(*tensors.values())
    with torch.autocast("cpu", torch.bfloat16):
        cast = call(design.attention, list(tensors), None)(*tensors.values())
    assert torch.equal(plain, cast)


# What is particular to one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "elu", "efficient", "softmax", "inline", "agent", "polaformer"])
def test_the_weights_of_a_query_sum_to_one(name: str) -> None:
    design = Design(name, 2, 9, 7, 4)
    tensors = design.draw(2)
    if name == "relu":  # to which a row without a positive entry is all but 0
        tensors = {part: x.abs() for part, x in tensors.items()}
    if name == "polaformer":  # whose powers make small products smaller still
        tensors |= {part: 3 * tensors[part] for part in ("query", "key")}
    matrix = call(design.matrix, list(tensors), draw_mask(2, 7))(*tensors.values())
    torch.testing.assert_close(matrix.sum(dim=3), torch.ones_like(matrix[..., 0]), rtol=0, atol=1e-4)  # eps in the divisor


def test_hydra_attention_has_as_many_heads_as_channels() -> None:
    two, one = Design("hydra", 2, 9, 7, 6), Design("hydra", 1, 9, 7, 12)
    tensors = two.draw(2)
    joined = {part: x.transpose(1, 2).flatten(2)[:, None] for part, x in tensors.items()}
    expected = two.attention(**tensors).transpose(1, 2).flatten(2)[:, None]
    torch.testing.assert_close(one.attention(**joined), expected)
    assert int(torch.linalg.matrix_rank(two.matrix(**tensors)).max()) == 1


def test_polaformer_sees_the_signs_that_relu_drops() -> None:
    design = Design("polaformer", 1, 6, 6, 4)
    q, k, v = torch.rand(3, 1, 1, 6, 4, dtype=torch.float64).unbind(0)
    here, there = (design.matrix(q, sign * k, v) for sign in (1, -1))
    torch.testing.assert_close(here.flip(1), there)  # with all signs turned the halves change places
    assert here[:, 1].norm() == 0
    out = design.attention(q, -k, v)
    assert out[..., :2].norm() == 0
    assert out[..., 2:].norm() > 0


def test_inline_attention_tells_parallel_queries_apart_and_relu_does_not() -> None:
    q, k, v = torch.rand(3, 1, 1, 6, 4, dtype=torch.float64).unbind(0)
    for name, same in (("inline", False), ("relu", True)):
        design = Design(name, 1, 6, 6, 4)
        distance = (design.attention(2 * q, k, v) - design.attention(q, k, v)).abs().max()
        assert (distance < 1e-5) == same


def pool_agents_by_hand(query: Tensor, grid_size: Sequence[int], agents: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Return the mean query of each bin, ``[B, H, A, D]``: bin i of n covers ⌊i·size/n⌋ to ⌈(i+1)·size/n⌉ of an axis."""
    kept = torch.ones_like(query[:, :1, :, :1]) if mask is None else mask.transpose(2, 3).expand(query.shape[0], 1, -1, 1)
    kept = kept.to(query.dtype)
    positions = torch.cartesian_prod(*(torch.arange(size) for size in grid_size)).reshape(-1, len(grid_size))
    pooled = []
    for bin_ in itertools.product(*map(range, agents)):
        inside = torch.ones(len(positions), dtype=torch.bool)
        for axis, (i, n, size) in enumerate(zip(bin_, agents, grid_size, strict=True)):
            inside &= (positions[:, axis] >= i * size // n) & (positions[:, axis] < -(-(i + 1) * size // n))
        weights = kept[:, :, inside]  # [B, 1, tokens of the bin, 1]
        pooled.append((query[:, :, inside] * weights).sum(dim=2) / weights.sum(dim=2).clamp(min=1))
    return torch.stack(pooled, dim=2)


GRIDS = [((11,), (4,)), ((5, 7), (3, 2)), ((2, 3), (4, 4)), ((3, 4, 5), (2, 2, 2))]


@pytest.mark.parametrize(("grid", "agents"), GRIDS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_agents_are_the_means_of_their_bins(grid: tuple[int, ...], agents: tuple[int, ...], masked: bool) -> None:
    count = torch.Size(grid).numel()
    query = torch.randn(2, 3, count, 4, dtype=torch.float64)
    mask = draw_mask(2, count) if masked else None
    expected = pool_agents_by_hand(query, grid, agents, mask)
    torch.testing.assert_close(pool_agents(query, grid, agents, mask), expected)
    if mask is not None:
        dirty = query.masked_fill(~mask.transpose(2, 3), float("nan"))
        torch.testing.assert_close(pool_agents(dirty, grid, agents, mask), expected)
