"""Every peer is its matrix times the values, forward and backward, at any size; and what it refuses."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flatten_transformer.ops import peers
from flatten_transformer.ops.peers import reference
from tests.helpers import TensorsMade, output_and_gradients, relative_error
from tests.ops.peers.cases import PEERS, Peer, call, draw, draw_mask

EVERY = pytest.mark.parametrize("name", PEERS)
LINEAR = pytest.mark.parametrize("name", [name for name in PEERS if name != "softmax"])
# Relative errors against the float64 oracle with the same rounded inputs. Measured in these tests, the worst of all peers,
# outputs and gradients: 4.5e-14 (float64), 4.1e-7 (float32), 2.8e-3 (bfloat16), 3.5e-4 (float16).
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1.2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def both_ways(peer: Peer, tensors: dict[str, Tensor], mask: Tensor | None, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return output and gradients: of the peer in ``dtype``, and of the oracle in float64 from the same numbers."""
    rounded = [tensor.to(dtype) for tensor in tensors.values()]
    names = list(tensors)
    upstream = torch.randn(tensors["query"].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    came = output_and_gradients(call(peer.attention, names, mask), rounded, upstream)
    wanted = output_and_gradients(call(peer.by_the_book, names, mask), [x.double() for x in rounded], upstream)
    return list(zip(came, wanted, strict=True))


@EVERY
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.data())
@settings(max_examples=25)
def test_output_and_every_gradient_are_the_oracles(
    name: str, batch: int, heads: int, queries: int, keys: int, half: int, masked: bool, data: st.DataObject
) -> None:
    peer = PEERS[name]
    tensors = draw(peer, batch, heads, queries, keys, 2 * half, seed=data.draw(st.integers(0, 10**6)))
    mask = draw_mask(batch, tensors["key"].shape[2]) if masked else None
    names = ["output", *tensors]
    for part, (came, wanted) in zip(names, both_ways(peer, tensors, mask, torch.float64), strict=True):
        # with one key or channel gradients cancel: errors are measured beside 1, the size of the inputs
        assert float((came - wanted).norm()) <= TOLERANCES[torch.float64] * max(1.0, float(wanted.norm())), part


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_every_dtype_is_the_oracle_to_its_precision(name: str, dtype: torch.dtype, masked: bool) -> None:
    peer = PEERS[name]
    tensors = draw(peer, 2, 2, 63, 63, 16)
    mask = draw_mask(2, 63) if masked else None
    for part, (came, wanted) in zip(["output", *tensors], both_ways(peer, tensors, mask, dtype), strict=True):
        assert came.dtype == dtype
        assert relative_error(came, wanted) <= TOLERANCES[dtype], part


@EVERY
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e6])
def test_what_lies_in_masked_keys_never_matters(name: str, garbage: float) -> None:
    peer = PEERS[name]
    tensors = draw(peer, 2, 2, 9, 9, 4)
    mask = draw_mask(2, 9)
    hidden = ~mask.transpose(2, 3)
    dirty = tensors | {part: tensors[part].masked_fill(hidden, garbage) for part in ("key", "value")}
    upstream = torch.randn_like(tensors["query"])
    clean, came = (
        output_and_gradients(call(peer.attention, list(tensors), mask), list(given.values()), upstream)
        for given in (tensors, dirty)
    )
    for part, one, other in zip(["output", *tensors], came, clean, strict=True):
        assert torch.equal(one, other), part


@EVERY
def test_masked_keys_are_as_good_as_absent(name: str) -> None:
    peer = PEERS[name]
    tensors = draw(peer, 1, 2, 9, 9, 4)
    mask = torch.arange(9)[None, None, None, :] < 6
    shorter = {part: x[:, :, :6] if part in ("key", "value") else x for part, x in tensors.items()}
    if "key_bias" in shorter:
        shorter["key_bias"] = shorter["key_bias"][:, :, :6]
    rows = slice(None)
    if peer.own_values:
        shorter["query"], rows = shorter["query"][:, :, :6], slice(6)
    came = call(peer.attention, list(tensors), mask)(*tensors.values())
    wanted = call(peer.attention, list(shorter), None)(*shorter.values())
    torch.testing.assert_close(came[:, :, rows], wanted)


@EVERY
def test_a_sample_without_keys_attends_to_nothing(name: str) -> None:
    peer = PEERS[name]
    tensors = draw(peer, 2, 2, 9, 9, 4)
    mask = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 9)
    upstream = torch.randn_like(tensors["query"])
    out, *gradients = output_and_gradients(call(peer.attention, list(tensors), mask), list(tensors.values()), upstream)
    assert out[0].norm() > 0
    assert out[1].norm() == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


@EVERY
def test_a_mask_over_pairs_is_refused(name: str) -> None:
    peer = PEERS[name]
    tensors = draw(peer, 2, 2, 9, 9, 4)
    with pytest.raises(ValueError, match="can leave out keys but not single query-key pairs"):
        call(peer.attention, list(tensors), torch.ones(2, 1, 9, 9, dtype=torch.bool))(*tensors.values())


@EVERY
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    peer = PEERS[name]
    tensors = draw(peer, 2, 2, 9, 9, 4) | {"value": torch.randn(2, 3, 9, 4)}
    with pytest.raises(ValueError, match="must agree in batch, heads"):
        call(peer.attention, list(tensors), None)(*tensors.values())


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-2, 30.0])
def test_nothing_overflows_in_half_precision(name: str, dtype: torch.dtype, size: float) -> None:
    peer = PEERS[name]
    tensors = draw(peer, 1, 2, 200, 200, 8)
    rounded = {part: (x * size if part in ("query", "key") else x).to(dtype) for part, x in tensors.items()}
    upstream = torch.randn(1, 2, 200, 8)
    for part in output_and_gradients(call(peer.attention, list(rounded), None), list(rounded.values()), upstream):
        assert part.isfinite().all()


@LINEAR
@pytest.mark.parametrize("masked", [False, True])
def test_no_tensor_has_an_element_for_each_query_and_key(name: str, masked: bool) -> None:
    peer = PEERS[name]
    totals = []
    for count in (1024, 2048):
        tensors = {part: x.float().requires_grad_() for part, x in draw(peer, 1, 2, count, count, 16).items()}
        mask = draw_mask(1, count) if masked else None
        with TensorsMade() as made:
            call(peer.attention, list(tensors), mask)(*tensors.values()).sum().backward()
        assert made.largest < count**2 / 10
        totals.append(made.total)
    assert 1.9 < totals[1] / totals[0] <= 2.1


def test_autocast_does_not_round_the_sums() -> None:
    for name, peer in PEERS.items():
        if name == "softmax":
            continue  # PyTorch's kernels round their inputs there, and sum in float32
        tensors = {part: x.float() for part, x in draw(peer, 2, 2, 40, 40, 8).items()}
        plain = call(peer.attention, list(tensors), None)(*tensors.values())
        with torch.autocast("cpu", torch.bfloat16):
            cast = call(peer.attention, list(tensors), None)(*tensors.values())
        assert torch.equal(plain, cast), name


# What is particular to one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "elu", "efficient", "softmax", "inline", "agent", "polaformer"])
def test_the_weights_of_a_query_sum_to_one(name: str) -> None:
    peer = PEERS[name]
    tensors = draw(peer, 2, 2, 9, 7, 4)
    if name == "relu":  # to which a row without a positive entry is all but 0
        tensors = {part: x.abs() for part, x in tensors.items()}
    matrix = call(peer.matrix, list(tensors), draw_mask(2, 7))(*tensors.values())
    torch.testing.assert_close(matrix.sum(dim=3), torch.ones_like(matrix[..., 0]), rtol=0, atol=1e-4)  # eps in the divisor


def test_hydra_attention_has_as_many_heads_as_channels() -> None:
    tensors = draw(PEERS["hydra"], 2, 2, 9, 7, 6)
    joined = [x.transpose(1, 2).flatten(2)[:, None] for x in tensors.values()]
    came = peers.hydra_attention(*joined)
    wanted = peers.hydra_attention(*tensors.values()).transpose(1, 2).flatten(2)[:, None]
    torch.testing.assert_close(came, wanted)
    assert int(torch.linalg.matrix_rank(reference.hydra_matrix(tensors["query"], tensors["key"])).max()) == 1


def test_hydra_attention_needs_values_like_keys() -> None:
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match="hydra attention multiplies keys and values channel by channel"):
        peers.hydra_attention(q, q, torch.randn(1, 2, 5, 6))


def test_angular_attention_needs_its_own_values() -> None:
    q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4)
    with pytest.raises(ValueError, match="as many queries as values, got 5 and 7"):
        peers.angular_attention(q, k, k)


def test_polaformer_sees_the_signs_that_relu_drops() -> None:
    q, k, v = torch.rand(3, 1, 1, 6, 4, dtype=torch.float64).unbind(0)
    power = torch.full((1, 4), 2.0, dtype=torch.float64)
    here, there = (reference.polaformer_matrix(q, sign * k, power=power) for sign in (1, -1))
    torch.testing.assert_close(here.flip(1), there)  # with all signs turned the halves change places
    assert here[:, 1].norm() == 0
    out = peers.polaformer_attention(q, -k, v, power=power)
    assert out[..., :2].norm() == 0
    assert out[..., 2:].norm() > 0


def test_polaformer_needs_two_halves_and_a_power_a_channel() -> None:
    q = torch.randn(1, 2, 5, 3)
    with pytest.raises(ValueError, match="must be even, got 3"):
        peers.polaformer_attention(q, q, q, power=torch.ones(2, 3))
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match=r"power must be \[heads, channels\] = \[2, 4\], got \[4\]"):
        peers.polaformer_attention(q, q, q, power=torch.ones(4))


def test_inline_attention_tells_parallel_queries_apart_and_relu_does_not() -> None:
    q, k, v = torch.rand(3, 1, 1, 6, 4, dtype=torch.float64).unbind(0)
    for attention, same in ((peers.inline_attention, False), (PEERS["relu"].attention, True)):
        distance = (attention(2 * q, k, v) - attention(q, k, v)).abs().max()
        assert (distance < 1e-5) == same


def test_agents_and_biases_must_fit() -> None:
    q, agents = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"agents must be \[batch, heads, agents, channels\]"):
        peers.agent_attention(q, q, q, agents=agents[0])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"query_bias": torch.zeros(2, 3, 5)}, r"query_bias must be \[2, 5, 3\]"),
        ({"key_bias": torch.zeros(2, 5, 3)}, r"key_bias must be \[2, 3, 5\]"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            peers.agent_attention(q, q, q, agents=agents, **options)


GRIDS = [((11,), (4,)), ((5, 7), (3, 2)), ((2, 3), (4, 4)), ((3, 4, 5), (2, 2, 2))]


@pytest.mark.parametrize(("grid", "agents"), GRIDS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_agents_are_the_means_of_their_bins(grid: tuple[int, ...], agents: tuple[int, ...], masked: bool) -> None:
    count = torch.Size(grid).numel()
    query = torch.randn(2, 3, count, 4, dtype=torch.float64)
    mask = draw_mask(2, count) if masked else None
    wanted = reference.pool_agents(query, grid, agents, mask)
    torch.testing.assert_close(peers.pool_agents(query, grid, agents, mask), wanted)
    if mask is not None:
        dirty = query.masked_fill(~mask.transpose(2, 3), float("nan"))
        torch.testing.assert_close(peers.pool_agents(dirty, grid, agents, mask), wanted)
