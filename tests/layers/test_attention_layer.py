"""Attentions as the ``attn_layer`` of timm's VisionTransformer and of its blocks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import Tensor

from flatten_transformer import FocusedLinearAttention, attention_layer, list_attentions

SIZES: dict[str, Any] = {"img_size": (48, 80), "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
GRID = (3, 5)


def build(name: str = "focused", *, own: dict[str, Any] | None = None, **options: Any) -> Any:
    linear = attention_layer(name, GRID, num_prefix_tokens=1, **(own or {}))
    return VisionTransformer(**{**SIZES, "attn_layer": linear, **options}).eval()


def images(height: int = 48, width: int = 80) -> Tensor:
    return torch.randn(2, 3, height, width)


@pytest.mark.parametrize("name", list_attentions())
def test_every_block_attends_by_it_and_learns(name: str) -> None:
    model = build(name)
    model(images()).sum().backward()
    for block in model.blocks:
        assert block.attn.qkv.weight.grad.abs().sum() > 0
        assert (block.attn.grid_size, block.attn.num_prefix_tokens) == (GRID, 1)


def test_the_options_of_host_and_user_arrive() -> None:
    bare = build(own={"focusing_factor": 4, "kernel_size": 3}, qkv_bias=False, proj_bias=False, proj_drop_rate=0.2)
    attention = bare.blocks[1].attn
    assert (attention.focusing_factor, attention.dwc.weight.shape[2:]) == (4, (3, 3))
    assert (attention.qkv.bias, attention.proj.bias, attention.proj_drop.p) == (None, None, 0.2)
    made = build(device=torch.device("meta"), dtype=torch.float64).blocks[0].attn.positional_encoding
    assert (made.device.type, made.dtype) == ("meta", torch.float64)


@pytest.mark.parametrize("block", [Block, ResPostBlock, ParallelThingsBlock])
def test_timms_blocks_that_take_an_attention_take_it(block: Any) -> None:
    assert build(block_fn=block)(images()).isfinite().all()


@pytest.mark.parametrize("weight_init", ["", "jax", "moco"])
def test_timm_draws_its_weights(weight_init: str) -> None:
    model = build(weight_init=weight_init, fix_init=True)
    first, last = (block.attn.proj.weight.std() for block in model.blocks)
    assert 0 < last < first
    model.init_weights()
    assert model(images()).isfinite().all()


def test_timms_registry_features_and_registers() -> None:
    linear = attention_layer("focused", (2, 2), num_prefix_tokens=5)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, reg_tokens=4, attn_layer=linear, features_only=True, out_indices=(0, 2)
    )
    assert [feature.shape for feature in model(images(32, 32))] == [(2, 192, 2, 2)] * 2


def test_weights_leave_and_enter() -> None:
    model, other, x = build(), build(), images()
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x))


def test_weights_of_softmax_enter_by_their_names() -> None:
    softmax, linear = VisionTransformer(**SIZES), build("softmax")
    linear.load_state_dict(softmax.state_dict())
    x = images()
    torch.testing.assert_close(linear(x), softmax.eval()(x))
    left = build().load_state_dict(softmax.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {name.partition("attn.")[2] for name in left.missing_keys} == {
        "scale",
        "positional_encoding",
        "dwc.weight",
        "dwc.bias",
    }


def test_another_size_is_set_or_refused() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"x has 17 tokens.*build the layer for these tokens"):
        build(dynamic_img_size=True)(images(64, 64))
    model.set_input_size(img_size=(64, 96))
    for block in model.blocks:
        block.attn.set_grid_size(model.patch_embed.grid_size)
    assert model(images(64, 96)).shape == (2, 3)


def test_models_and_classes_are_copied_and_pickled() -> None:
    model, x = build(), images()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), model(x))
    linear = attention_layer("focused", GRID, focusing_factor=4)
    for again in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        made: Any = again(32, num_heads=2)
        assert type(made) is FocusedLinearAttention
        assert (made.focusing_factor, made.grid_size) == (4, GRID)


def test_a_compiled_model_is_one_graph() -> None:
    torch._dynamo.reset()
    model, x = build(), images()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("option", ["attn_drop_rate", "qk_norm", "scale_attn_norm"])
def test_options_of_softmax_are_refused(option: str) -> None:
    given: dict[str, Any] = {option: 0.1 if option == "attn_drop_rate" else True}
    with pytest.raises(ValueError, match=rf"{option}.* has no meaning for linear attention over a grid: leave it out"):
        build(**given)


def test_what_cannot_be_is_refused_before_a_model_is_built() -> None:
    wrong: list[tuple[str, Any, dict[str, Any], str]] = [
        ("focussed", GRID, {}, "no attention 'focussed'.*focused"),
        ("elu", GRID, {"focusing_factor": 3}, "'elu' has no option 'focusing_factor'"),
        ("elu", 14, {}, r"grid_size must hold one to three positive sizes, such as \(14, 14\), got 14"),
        ("elu", GRID, {"qkv_bias": True}, "qkv_bias is set by the model that takes the attn_layer: leave it out here, got True"),
    ]
    for name, grid_size, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            attention_layer(name, grid_size, **options)
