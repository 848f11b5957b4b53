"""The attention of the pyramids: the layer over a reduced map, timm's softmax, patches of any map."""

# B batch, N tokens of the map, C channels.

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import Attention

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.layers.patches import pad_to_patches
from flatten_transformer.models.options import check_attn_drop
from flatten_transformer.models.spatial_reduction import (
    SpatialReductionAttention,
    block_sr_ratios,
    build_attention,
    pyramid_feat_sizes,
    set_feat_sizes,
)


def reduced_attention(feat_size: tuple[int, int], *, sr_ratio: int = 1, stretch: Any = "grid") -> Any:
    linear = partial(FocusedLinearAttention, stretch=stretch)
    return build_attention("L", 24, 3, feat_size, sr_ratio, linear=linear, softmax=SpatialReductionAttention)


def randomised(module: torch.nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.double().eval()


@pytest.mark.parametrize("remainder", ["pad", "drop"])
def test_a_map_that_patches_fit_stays_the_tensor_it_is(remainder: Any) -> None:
    image = torch.randn(2, 3, 12, 20)
    assert pad_to_patches(image, 4, remainder=remainder) is image


def test_a_padded_patch_sees_zeros_beyond_the_map() -> None:
    image = torch.randn(2, 3, 13, 18)
    assert torch.equal(pad_to_patches(image, 4), F.pad(image, (0, 2, 0, 3)))


def test_rows_and_columns_that_are_dropped_are_left_to_the_convolution() -> None:
    image = torch.randn(2, 3, 13, 18)
    assert pad_to_patches(image, 4, remainder="drop") is image


@pytest.mark.parametrize("remainder", ["pad", "drop"])
def test_a_map_smaller_than_a_patch_becomes_one_patch(remainder: Any) -> None:
    padded = pad_to_patches(torch.ones(2, 3, 5, 17), 8, remainder=remainder)
    assert padded.shape == (2, 3, 8, 24 if remainder == "pad" else 17)
    assert padded.sum() == 2 * 3 * 5 * 17


@pytest.mark.parametrize("stretch", ["grid", "tokens"])
@pytest.mark.parametrize("feat_size", [(8, 12), (7, 9), (3, 2)])
def test_reduced_attention_is_the_layer_over_a_convolved_normalised_map(feat_size: tuple[int, int], stretch: Any) -> None:
    attention = randomised(reduced_attention((8, 12), sr_ratio=4, stretch=stretch))
    layer = FocusedLinearAttention(24, 3, (2, 3), context_dim=24, stretch=stretch).double().eval()
    layer.load_state_dict(attention.state_dict(), strict=False)
    height, width = feat_size
    x = torch.randn(2, height * width, 24, dtype=torch.float64)
    padded = torch.zeros(2, -(-height // 4) * 4, -(-width // 4) * 4, 24, dtype=torch.float64)
    padded[:, :height, :width] = x.reshape(2, height, width, 24)
    reduced = F.conv2d(padded.permute(0, 3, 1, 2), attention.sr.weight, attention.sr.bias, stride=4)
    context = F.layer_norm(reduced.flatten(2).mT, [24], attention.sr_norm.weight, attention.sr_norm.bias, eps=1e-5)
    expected = layer(x, feat_size, context=context, context_grid_size=reduced.shape[2:])
    torch.testing.assert_close(attention(x, feat_size), expected, rtol=1e-12, atol=1e-12)


def test_without_reduction_every_token_attends_to_every_token() -> None:
    attention = randomised(reduced_attention((4, 6)))
    layer = FocusedLinearAttention(24, 3, (4, 6), context_dim=24).double().eval()
    layer.load_state_dict(attention.state_dict())
    x = torch.randn(2, 24, 24, dtype=torch.float64)
    assert torch.equal(attention(x, (4, 6)), layer(x, context=x))


def test_the_key_encoding_is_learned_on_the_reduced_map() -> None:
    attention = reduced_attention((56, 55), sr_ratio=8)
    assert attention.grid_size == (7, 7)
    set_feat_sizes(torch.nn.ModuleList([torch.nn.ModuleList([attention])]), [(64, 41)])
    assert attention.positional_encoding.shape == (1, 8 * 6, 24)


@pytest.mark.parametrize("feat_size", [(8, 12), (11, 9)])
@pytest.mark.parametrize("sr_ratio", [1, 4])
def test_softmax_attention_is_timms_where_timms_works(feat_size: tuple[int, int], sr_ratio: int) -> None:
    attention = SpatialReductionAttention(24, 3, sr_ratio=sr_ratio)
    host = Attention(24, 3, sr_ratio=sr_ratio)
    host.load_state_dict(attention.state_dict())
    x = torch.randn(2, feat_size[0] * feat_size[1], 24)
    assert torch.equal(attention(x, feat_size), host(x, feat_size))


@pytest.mark.parametrize("feat_size", [(3, 5), (2, 9), (4, 1)])
def test_softmax_attention_on_a_map_smaller_than_a_patch_has_the_keys_of_the_map_with_zeros_around(feat_size: Any) -> None:
    attention = randomised(SpatialReductionAttention(24, 3, sr_ratio=4))
    height, width = feat_size
    x = torch.randn(2, height * width, 24, dtype=torch.float64)
    image = F.pad(x.transpose(1, 2).unflatten(2, feat_size), (0, max(0, 4 - width), 0, max(0, 4 - height)))
    reduced = F.conv2d(image, attention.sr.weight, attention.sr.bias, stride=4).flatten(2).transpose(1, 2)
    key, value = attention.kv(attention.norm(reduced)).unflatten(2, (2, 3, 8)).permute(2, 0, 3, 1, 4)
    query = attention.q(x).unflatten(2, (3, 8)).transpose(1, 2)
    expected = attention.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, feat_size), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("sr_ratios", "attn_types", "expected"),
    [
        (None, ["L", "LL", "L", "L"], [(1,), (1, 1), (1,), (1,)]),
        (None, ["S", "S", "SS", "S"], [(8,), (4,), (2, 2), (1,)]),
        (None, ["LS", "SLS", "LS", "S"], [(1, 8), (4, 1, 4), (1, 2), (1,)]),
        (2, ["LS", "L", "S", "S"], [(2, 2), (2,), (2,), (2,)]),
        ([8, 4, 2, 1], ["LS", "L", "S", "S"], [(8, 8), (4,), (2,), (1,)]),
    ],
)
def test_reductions_are_those_of_the_stage_or_of_the_kind(sr_ratios: Any, attn_types: list[str], expected: Any) -> None:
    assert block_sr_ratios(sr_ratios, attn_types) == expected


@pytest.mark.parametrize("sr_ratios", [0, (8, 4, 2), (8, 4, 2, 0), (8, 4, 2, 1.5), "8421"])
def test_reductions_that_are_not_whole_numbers_a_stage_are_refused(sr_ratios: Any) -> None:
    with pytest.raises(ValueError, match="whole number of at least 1 for each of 4 stages"):
        block_sr_ratios(sr_ratios, "LLLL")


def test_dropout_on_attention_weights_needs_attention_weights() -> None:
    check_attn_drop(0.1, "LLLS")
    with pytest.raises(ValueError, match="attn_drop_rate acts on the weights of softmax attention"):
        check_attn_drop(0.1, "LLLL")


@pytest.mark.parametrize("img_size", [0, (224, 0)])
def test_an_image_has_a_size(img_size: Any) -> None:
    with pytest.raises(ValueError, match="img_size must be one or two positive sizes"):
        pyramid_feat_sizes(img_size)


def test_one_compiled_graph_serves_maps_that_fit_no_patch() -> None:
    patches = torch.nn.Conv2d(3, 8, 4, stride=4)

    def mean(image: torch.Tensor) -> torch.Tensor:
        tokens = patches(pad_to_patches(image, 4)).flatten(2)
        return tokens.sum(2) * (1 / tokens.shape[2])  # a number made of a free size, as linear attention has it

    compiled = torch.compile(mean, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in [(33, 50), (45, 31)]:
            image = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(image), mean(image))
