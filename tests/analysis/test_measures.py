import math

import pytest
import torch

from flatten_transformer.analysis import effective_rank, numerical_rank, row_entropy_bits, token_similarity, top_mass


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
