"""The judge is judged: the oracle against loops over single numbers, its gradients against finite differences."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.ops import reference
from flatten_transformer.ops.checks import Norm
from tests.helpers import Case, relative_error


def features_by_hand(x: Tensor, temperature: Tensor | None, p: float, norm: Norm, eps: float) -> dict[tuple[int, ...], float]:
    batch, heads, tokens, channels = x.shape
    raw = {
        (b, h, n, d): (max(float(x[b, h, n, d]), 0.0) + eps) / (1.0 if temperature is None else float(temperature[h, d]))
        for b, h, n, d in itertools.product(range(batch), range(heads), range(tokens), range(channels))
    }
    features: dict[tuple[int, ...], float] = {}
    for b, h, n, d in raw:
        together = [
            raw[b, g, n, c] for g in range(heads) for c in range(channels) if norm == "joint" or g == h
        ]  # all channels of the token, or those of this head
        length = math.sqrt(sum(value**2 for value in together))
        length_of_power = math.sqrt(sum((value**p) ** 2 for value in together))
        features[b, h, n, d] = raw[b, h, n, d] ** p * length / length_of_power
    return features


def attention_by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    temperature: Tensor | None,
    p: float,
    norm: Norm,
    eps: float,
) -> Tensor:
    """Follow attention.md line by line, in its own order of the steps: ``q @ (kᵀ v / n) · z``."""
    batch, heads, queries, channels = query.shape
    q = features_by_hand(query, temperature, p, norm, eps)
    k = features_by_hand(key, temperature, p, norm, eps)
    out = torch.zeros(batch, heads, queries, value.shape[3], dtype=torch.float64)
    for b, h, i in itertools.product(range(batch), range(heads), range(queries)):
        kept = [j for j in range(key.shape[2]) if mask is None or bool(mask[b, 0, 0, j])]
        n = max(len(kept), 1)
        mean = [sum(k[b, h, j, d] for j in kept) / n for d in range(channels)]
        z = 1 / (sum(q[b, h, i, d] * mean[d] for d in range(channels)) + eps)
        for e in range(value.shape[3]):
            context = [sum(k[b, h, j, d] * float(value[b, h, j, e]) for j in kept) / n for d in range(channels)]
            out[b, h, i, e] = sum(q[b, h, i, d] * context[d] for d in range(channels)) * z
    return out


@pytest.mark.parametrize("norm", ["joint", "per_head"])
@pytest.mark.parametrize("p", [1, 3, 2.5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_temperature", [False, True])
def test_the_oracle_is_the_formula_worked_out_number_by_number(
    norm: Norm, p: float, masked: bool, with_temperature: bool
) -> None:
    case = Case(1, 2, 2, 3, 5, 3, 4, p, norm, masked, with_temperature)
    query, key, value, *rest = case.inputs(torch.float64)
    temperature = rest[0] if rest else None
    mask = case.mask()
    for eps in (1e-6, 0.1):
        wanted = attention_by_hand(query, key, value, mask, temperature, p, norm, eps)
        came = reference.focused_linear_attention(query, key, value, temperature=temperature, eps=eps, **case.options())
        assert relative_error(came, wanted) < 1e-14


def test_the_oracle_gives_zeros_where_every_key_is_masked() -> None:
    query, key, value = torch.randn(3, 2, 1, 4, 3, dtype=torch.float64).unbind(0)
    mask = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 4)
    out = reference.focused_linear_attention(query, key, value, mask)
    assert out[0].abs().min() > 0
    assert out[1].abs().max() == 0


def test_rows_of_the_attention_matrix_sum_to_one_and_are_not_negative() -> None:
    query, key = torch.randn(2, 2, 3, 7, 16, dtype=torch.float64).unbind(0)
    matrix = reference.attention_matrix(query, key)
    assert matrix.min() >= 0
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["joint", "per_head"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_oracle_are_finite_differences(norm: Norm, masked: bool) -> None:
    case = Case(2, 1, 2, 2, 3, 3, 2, 3.0, norm, masked, with_temperature=True)
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float64)]

    def oracle(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor) -> Tensor:
        return reference.focused_linear_attention(query, key, value, temperature=temperature, **case.options())

    assert torch.autograd.gradcheck(oracle, inputs)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("grid", [(7,), (5, 7), (3, 4, 5)], ids=str)
def test_the_convolution_of_the_oracle_is_pytorchs(grid: tuple[int, ...], kernel_size: int) -> None:
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(grid)]
    value = torch.randn(1, 2, 2 + math.prod(grid), 4, dtype=torch.float64)  # two prefix tokens
    weight = torch.randn(4, 1, *[kernel_size] * len(grid), dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    came = reference.depthwise_convolution(value, weight, bias, grid)
    assert came[:, :, :2].abs().max() == 0
    for head in range(2):
        image = value[:, head, 2:].reshape(1, *grid, 4).movedim(-1, 1)
        wanted = convolve(image, weight, bias, padding=kernel_size // 2, groups=4).movedim(1, -1).flatten(1, -2)
        assert relative_error(came[:, head, 2:], wanted) < 1e-13


def test_the_key_encoding_of_the_oracle_is_part_of_the_keys() -> None:
    query, key, value = torch.randn(3, 2, 3, 6, 4, dtype=torch.float64).unbind(0)
    encoding = torch.randn(3, 6, 4, dtype=torch.float64)
    came = reference.focused_linear_attention(query, key, value, key_encoding=encoding)
    assert torch.equal(came, reference.focused_linear_attention(query, key + encoding, value))
    assert relative_error(came, reference.focused_linear_attention(query, key, value)) > 1e-3
