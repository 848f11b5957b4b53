import pytest
import timm
import torch

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.analysis import (
    attention_input,
    convolution_matrix,
    focused_matrix,
    numerical_rank,
    softmax_matrix,
)


def trained_like(**options: object) -> FocusedLinearAttention:
    layer = FocusedLinearAttention(dim=16, num_heads=2, grid_size=(5, 7), dtype=torch.float64, **options)  # type: ignore[arg-type]
    for parameter in layer.parameters():  # no zero encodings, no 0.02 projections
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("options", [{}, {"norm": "per_head"}, {"kernel_size": 3}, {"temperature": False}])
def test_matrices_times_values_are_the_output_of_the_layer(options: dict[str, object]) -> None:
    layer = trained_like(**options)
    assert layer.dwc is not None
    tokens = torch.randn(2, 35, 16, dtype=torch.float64)

    value = layer.qkv(tokens).chunk(3, dim=2)[2].unflatten(2, (2, 8)).transpose(1, 2)  # [B, H, N, E]
    restored = torch.einsum("eij,bhje->bhie", convolution_matrix(layer, (5, 7)), value)
    assert layer.dwc.bias is not None
    restored = restored + layer.dwc.bias
    out = focused_matrix(layer, tokens, (5, 7)) @ value + restored

    torch.testing.assert_close(layer.proj(out.transpose(1, 2).flatten(2)), layer(tokens), rtol=1e-10, atol=1e-10)


def test_linear_attention_has_at_most_the_rank_of_a_head_and_the_convolution_restores_it() -> None:
    layer = trained_like()
    matrix = focused_matrix(layer, torch.randn(1, 35, 16, dtype=torch.float64), (5, 7))
    assert numerical_rank(matrix).max() <= 8
    assert numerical_rank(matrix[0, 0] + convolution_matrix(layer, (5, 7))).min() == 35


def test_the_power_of_the_layer_can_be_replaced() -> None:
    layer, tokens = trained_like(), torch.randn(1, 35, 16, dtype=torch.float64)
    assert torch.equal(focused_matrix(layer, tokens, (5, 7)), focused_matrix(layer, tokens, (5, 7), focusing_factor=3))
    assert not torch.equal(focused_matrix(layer, tokens, (5, 7)), focused_matrix(layer, tokens, (5, 7), focusing_factor=1))


def test_softmax_matrix_times_values_is_the_output_of_timms_attention() -> None:
    model = timm.create_model("flatten_deit_tiny_patch16_224", attn_types="S", depth=2, img_size=32, patch_size=8).double()
    attention, tokens = attention_input(model, torch.randn(1, 3, 32, 32, dtype=torch.float64), block=-1)
    value = attention.qkv(tokens).chunk(3, dim=2)[2].unflatten(2, (3, 64)).transpose(1, 2)
    out = (softmax_matrix(attention, tokens) @ value).transpose(1, 2).flatten(2)
    expected = timm.layers.attention.Attention.forward(attention, tokens)
    torch.testing.assert_close(attention.proj(out), expected, rtol=1e-10, atol=1e-10)


def test_looking_at_a_block_leaves_no_hook_behind() -> None:
    model = timm.create_model("flatten_deit_tiny_patch16_224", depth=1, img_size=32)
    attention_input(model, torch.rand(1, 3, 32, 32), block=0)
    assert not model.blocks[0].attn._forward_pre_hooks


def test_a_block_that_does_not_exist_is_refused_with_those_that_do() -> None:
    model = timm.create_model("flatten_deit_tiny_patch16_224", depth=2, img_size=32)
    with pytest.raises(ValueError, match="blocks 0 to 1, got block 7"):
        attention_input(model, torch.rand(1, 3, 32, 32), block=7)


def test_a_layer_without_rank_restoration_has_no_convolution_matrix() -> None:
    with pytest.raises(ValueError, match="rank_restoration=False"):
        convolution_matrix(trained_like(rank_restoration=False), (5, 7))
