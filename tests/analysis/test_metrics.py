"""Numbers of matrices, layers and heads, and the paper's facts about ranks: 196 / at most a head's channels / 196."""

import math
from typing import Any

import pytest
import timm
import torch

from flatten_transformer.analysis import (
    CapturedAttention,
    LayerNumbers,
    capture,
    effective_rank,
    measure,
    numerical_rank,
    row_entropy_bits,
    token_similarity,
    top_mass,
)
from flatten_transformer.analysis.selection import sample_channels
from flatten_transformer.layers import list_attentions
from tests.helpers import randomise

TINY = {"img_size": 40, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def test_the_effective_rank_weighs_directions_the_numerical_rank_counts_them() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1e-3, 1e-3, 0.0], dtype=torch.float64))
    shares = torch.tensor([1, 1e-3, 1e-3], dtype=torch.float64) / 1.002
    assert numerical_rank(matrix) == 3
    assert float(effective_rank(matrix)) == pytest.approx(math.exp(-float((shares * shares.log()).sum())))
    assert 1 < effective_rank(matrix) < 1.02


def test_the_effective_rank_is_the_same_at_any_scale_and_of_a_whole_batch() -> None:
    matrices = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    assert effective_rank(matrices).shape == (3, 2)
    torch.testing.assert_close(effective_rank(1e6 * matrices), effective_rank(matrices))
    torch.testing.assert_close(effective_rank(matrices)[1, 0], effective_rank(matrices[1, 0]))


def test_rows_of_zeros_are_no_accident() -> None:
    nothing = torch.zeros(4, 4)
    for measured in (effective_rank(nothing), row_entropy_bits(nothing), top_mass(nothing, 2), token_similarity(nothing)):
        assert measured.isfinite()


def test_a_sharp_row_has_little_entropy_and_much_mass_in_few_weights() -> None:
    flat, sharp = torch.full((1, 16), 1 / 16), torch.eye(16)[:1]
    assert row_entropy_bits(flat) == pytest.approx(4)
    assert row_entropy_bits(sharp) == pytest.approx(0)
    assert top_mass(flat, 4) == pytest.approx(0.25)
    assert top_mass(sharp, 4) == pytest.approx(1)
    assert top_mass(flat, 99) == pytest.approx(1)


def test_negative_weights_count_by_their_magnitude() -> None:
    row = torch.tensor([[2.0, -1.0, 1.0]])
    assert row_entropy_bits(row) == pytest.approx(1.5)
    assert top_mass(row, 2) == pytest.approx(0.75)


def test_the_similarity_is_the_mean_cosine_of_all_pairs() -> None:
    tokens = torch.randn(6, 3)
    pairs = [torch.cosine_similarity(tokens[i], tokens[j], dim=0) for i in range(6) for j in range(6) if i != j]
    assert token_similarity(tokens) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


def deit(**options: Any) -> CapturedAttention:
    model = timm.create_model("flatten_deit_tiny_patch16_224", **{**TINY, **options})
    randomise(model)
    return capture(model, torch.randn(1, 3, *(2 * [options.get("img_size", 40)])))[0]


def of_196_tokens(attention: str) -> LayerNumbers:
    numbers = measure(deit(img_size=224, patch_size=16, embed_dim=96, num_heads=3, attention=attention), channels=2)
    assert (numbers.queries, numbers.keys, numbers.head_dim) == (196, 196, 32)
    return numbers


def test_the_rank_is_the_papers_196_of_softmax_a_heads_channels_of_linear_and_196_restored() -> None:
    softmax, linear, focused = (of_196_tokens(name) for name in ("softmax", "relu", "focused"))
    for head in softmax.heads:
        assert 190 <= head.attention.rank <= 196
    for layer in (linear, focused):
        for head in layer.heads:
            assert 24 <= head.attention.rank <= 32  # a channel that no token uses gives none
    for head in focused.heads:
        assert head.restored is not None
        assert 190 <= head.restored.rank <= 196
        assert head.restored.effective_rank > 3 * head.attention.effective_rank
    assert all(head.restored is None for head in linear.heads)


@pytest.mark.parametrize("design", list_attentions())
def test_every_design_is_measured_head_by_head(design: str) -> None:
    agents = {"attention_args": {"num_agents": 4}} if design == "agent" else {}
    attention = deit(attention=design, **agents)
    layer = measure(attention, top_k=5)
    assert len(layer.heads) == 2
    assert layer.negative == bool((attention.decompose().matrix < 0).any())
    for head in layer.heads:
        for numbers in (head.attention, head.restored):
            if numbers is not None:
                assert 1 <= numbers.effective_rank <= numbers.rank + 1e-6
                assert 0 <= numbers.entropy_bits <= 4.65
                assert 0.2 <= numbers.top_k_mass <= 1
                assert -1 <= numbers.similarity <= 1
    assert (layer.heads[0].restored is None) == (attention.decompose().convolved is None)


def test_designs_with_negative_weights_are_marked() -> None:
    assert {name: measure(deit(attention=name)).negative for name in ("relu", "softmax", "hydra", "inline")} == {
        "relu": False,
        "softmax": False,
        "hydra": True,
        "inline": True,
    }


def test_the_convolution_makes_output_tokens_less_alike() -> None:
    layer = measure(deit())
    alone, restored = layer.mean("similarity"), layer.mean("similarity", restored=True)
    assert alone is not None
    assert restored is not None
    assert restored < alone


def test_top_k_and_channels_change_what_is_measured() -> None:
    attention = deit()
    masses = [measure(attention, top_k=top_k).mean("top_k_mass") for top_k in (1, 5, 25)]
    assert masses == sorted(masses)  # type: ignore[type-var]
    assert masses[2] == pytest.approx(1)
    few, many = (measure(attention, channels=channels).mean("effective_rank", restored=True) for channels in (1, 8))
    assert few != many


def test_channels_are_spread_over_their_head() -> None:
    attention = deit()
    assert sample_channels(attention, 1, 4) == [9, 11, 13, 15]
    assert sample_channels(attention, 0, 99) == list(range(8))
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        sample_channels(attention, 0, 0)


def test_an_attention_over_too_many_tokens_is_left_out() -> None:
    layer = measure(deit(), max_tokens=24)
    assert layer.heads == ()
    assert layer.mean("rank") is None
    assert measure(deit(), max_tokens=25).heads


@pytest.mark.parametrize("design", ["focused", "hydra", "polaformer"])
def test_the_numbers_of_a_head_are_of_its_own_matrices(design: str) -> None:
    attention = deit(attention=design)
    matrices = attention.decompose().matrix[0]
    for number, own in enumerate(matrices.chunk(2)):
        head = measure(attention, channels=8).heads[number].attention
        assert head.effective_rank == pytest.approx(float(effective_rank(own).mean()))
        assert head.entropy_bits == pytest.approx(float(row_entropy_bits(own).mean()))
