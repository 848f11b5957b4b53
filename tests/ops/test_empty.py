"""Nothing in, nothing out: as scaled_dot_product_attention, on every backend, for every attention and model."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from flatten_transformer import focused_linear_attention
from flatten_transformer.layers import create_attention, list_attentions
from flatten_transformer.ops import linear_attention
from tests.layers.designs import DESIGNS, Design

# batch, heads, queries, keys, channels of keys and of values
EMPTY = [(0, 2, 6, 6, 8, 8), (2, 0, 6, 6, 8, 8), (2, 2, 0, 5, 8, 8), (2, 2, 6, 0, 8, 8), (2, 2, 0, 0, 8, 8), (2, 2, 6, 6, 8, 0)]
BACKENDS = pytest.mark.parametrize("backend", ["portable", "cpp", None])


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.rand(shape, requires_grad=True) for shape in shapes]


def assert_zero_gradients(out: Tensor, tensors: list[Tensor]) -> None:
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), tensors), tensors, strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.abs().sum() == 0


@BACKENDS
@pytest.mark.parametrize("sizes", EMPTY, ids=str)
def test_empty_in_empty_out_with_gradients_of_zeros(sizes: tuple[int, ...], backend: Any) -> None:
    batch, heads, queries, keys, channels, outputs = sizes
    q, k, v = leaves((batch, heads, queries, channels), (batch, heads, keys, channels), (batch, heads, keys, outputs))
    temperature, encoding = leaves((heads, channels), (heads, keys, channels))
    mask = torch.ones(batch, 1, 1, keys, dtype=torch.bool)
    out = focused_linear_attention(q, k, v, mask, temperature=temperature, key_encoding=encoding, backend=backend)
    wanted = F.scaled_dot_product_attention(q, k, v)
    assert out.shape == wanted.shape
    assert torch.equal(out, wanted)
    assert_zero_gradients(out, [q, k, v, temperature, encoding])
    plain = linear_attention(q, k, v)
    assert torch.equal(plain, wanted)
    assert_zero_gradients(plain, [q, k, v])


@BACKENDS
def test_an_empty_batch_passes_the_convolution(backend: Any) -> None:
    query, key, value, weight, bias = leaves(*[(0, 2, 6, 4)] * 3, (4, 1, 3, 3), (4,))
    out = focused_linear_attention(query, key, value, conv_weight=weight, conv_bias=bias, grid_size=(2, 3), backend=backend)
    assert out.shape == (0, 2, 6, 4)
    assert_zero_gradients(out, [query, key, value, weight, bias])


@BACKENDS
def test_without_key_channels_the_convolution_is_all_that_is_left(backend: Any) -> None:
    query, key, value, weight = leaves((1, 2, 6, 0), (1, 2, 6, 0), (1, 2, 6, 4), (4, 1, 3, 3))
    out = focused_linear_attention(query, key, value, conv_weight=weight, grid_size=(2, 3), backend=backend)
    image = value.transpose(2, 3).reshape(2, 4, 2, 3)
    wanted = F.conv2d(image, weight, padding=1, groups=4).reshape(1, 2, 4, 6).transpose(2, 3)
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("sizes", [(0, 5, 5), (2, 0, 5), (2, 5, 0)], ids=str)
def test_other_designs_take_nothing_too(name: str, sizes: tuple[int, int, int]) -> None:
    batch, queries, keys = sizes
    if name == "agent" and 0 in (queries, keys):
        pytest.skip("its agents are pooled from a grid, which has at least one token")
    design = Design(name, 2, 0 if name == "angular" and not keys else queries, keys, 8)
    tensors = {part: x.requires_grad_() for part, x in design.draw(batch).items()}
    out = design.attention(**tensors)
    assert out.shape == tensors["query"].shape
    assert out.abs().sum() == 0
    for gradient in torch.autograd.grad(out.sum(), list(tensors.values()), allow_unused=True):
        assert gradient is None or gradient.abs().sum() == 0


@pytest.mark.parametrize("name", list_attentions())
def test_a_layer_takes_an_empty_batch_and_learns_nothing_from_it(name: str) -> None:
    layer = create_attention(name, dim=16, num_heads=2, grid_size=(2, 3))
    x = torch.rand(0, 6, 16, requires_grad=True)
    out = layer(x)
    assert out.shape == (0, 6, 16)
    assert_zero_gradients(out, [x, *layer.parameters()])


def test_a_model_takes_an_empty_batch() -> None:
    model = timm.create_model("flatten_deit_tiny_patch16_224", depth=1, img_size=32, num_classes=3)
    assert model(torch.rand(0, 3, 32, 32)).shape == (0, 3)
