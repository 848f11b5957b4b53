"""Attentions in the places of timm's `Attention` and torch's `nn.MultiheadAttention`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from flatten_transformer import FocusedLinearAttention, GridAttention, MultiheadAdapter, create_attention, list_attentions

DIM, HEADS, GRID = 32, 2, (3, 5)


def make(name: str = "focused", **options: Any) -> GridAttention:
    return create_attention(name, DIM, HEADS, GRID, **options).eval()


def tokens(count: int = 15, batch: int = 2, **options: Any) -> Tensor:
    return torch.randn(batch, count, DIM, **options)


def padding() -> Tensor:
    """True where a key is left out."""
    return torch.arange(15) >= torch.tensor([[15], [9]])


def twins() -> tuple[nn.MultiheadAttention, MultiheadAdapter]:
    """Torch's attention, and ours by the same formula and weights."""
    torchs = nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64).eval()
    softmax = make("softmax", dtype=torch.float64)
    nn.init.normal_(torchs.in_proj_bias)
    softmax.load_state_dict(
        {
            "qkv.weight": torchs.in_proj_weight,
            "qkv.bias": torchs.in_proj_bias,
            "proj.weight": torchs.out_proj.weight,
            "proj.bias": torchs.out_proj.bias,
        }
    )
    return torchs, MultiheadAdapter(softmax)


# timm ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_attentions())
def test_timms_vision_transformer_takes_every_attention(name: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=(48, 80), depth=2, embed_dim=DIM, num_heads=HEADS, num_classes=3)
    attention = create_attention(name, DIM, HEADS, model.patch_embed.grid_size, num_prefix_tokens=model.num_prefix_tokens)
    seen: list[Tensor] = []
    attention.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    model.blocks[1].attn = attention
    model.eval()(torch.randn(2, 3, 48, 80)).sum().backward()
    assert attention.proj.weight.grad is not None
    assert attention.proj.weight.grad.abs().sum() > 0
    torch.testing.assert_close(attention(seen[0], model.patch_embed.grid_size), seen[1])


def test_a_causal_block_is_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    model.blocks[0].attn = FocusedLinearAttention(192, 3, (2, 2), num_prefix_tokens=1)
    with pytest.raises(ValueError, match="an image has no causal order: leave is_causal out"):
        model(torch.randn(1, 3, 32, 32), is_causal=True)


# torch and torchvision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "padding"])
@pytest.mark.parametrize("average", [True, False], ids=["mean", "heads"])
def test_softmax_in_the_place_of_torchs_attention_gives_its_outputs_and_weights(masked: bool, average: bool) -> None:
    torchs, ours = twins()
    x = tokens(dtype=torch.float64)
    options: dict[str, Any] = {"key_padding_mask": padding() if masked else None, "average_attn_weights": average}
    for expected, came in zip(torchs(x, x, x, **options), ours(x, x, x, **options), strict=True):
        torch.testing.assert_close(came, expected)
    assert ours(x, x, x, need_weights=False, **options)[1] is None


def test_tokens_may_come_before_the_batch() -> None:
    _, ours = twins()
    x = tokens(dtype=torch.float64)
    expected = ours(x, x, x, padding())[0].transpose(0, 1)
    sequence_first = MultiheadAdapter(ours.attention, batch_first=False)
    torch.testing.assert_close(sequence_first(*[x.transpose(0, 1)] * 3, padding())[0], expected)


def test_keys_of_another_tensor_are_the_context() -> None:
    attention = make(context_dim=24)
    x, context = tokens(), torch.randn(2, 15, 24)
    out, _ = MultiheadAdapter(attention)(x, context, context, need_weights=False)
    torch.testing.assert_close(out, attention(x, context=context))
    cross = make(context_dim=DIM)
    torch.testing.assert_close(MultiheadAdapter(cross)(x, x, x, need_weights=False)[0], cross(x, context=x))
    reducing = make(sr_ratio=2)
    torch.testing.assert_close(MultiheadAdapter(reducing)(x, x, x, need_weights=False)[0], reducing(x))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torchs_encoder_layer_is_the_same_around_either(training: bool) -> None:
    torchs, ours = twins()
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 16, dropout=0.0, batch_first=True, dtype=torch.float64).train(training)
    x = tokens(dtype=torch.float64)
    outputs = []
    for attention in (torchs, ours):
        layer.self_attn = attention.train(training)  # type: ignore[assignment]
        outputs.append(layer(x, src_key_padding_mask=padding()))
    torch.testing.assert_close(outputs[1][~padding()], outputs[0][~padding()])


def test_torchs_encoder_of_such_layers_takes_padding() -> None:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 16, batch_first=True)
    later = nn.TransformerEncoder(copy.deepcopy(layer), 2)
    layer.self_attn = MultiheadAdapter(make())  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="use_nested_tensor is False"):
        encoder = nn.TransformerEncoder(layer, 2).eval()
    assert encoder(tokens(), src_key_padding_mask=padding()).isfinite().all()
    for each in later.layers:
        each.self_attn = MultiheadAdapter(make())
    with pytest.raises(ValueError, match="use_nested_tensor = False"):
        later.eval()(tokens(), src_key_padding_mask=padding())
    later.use_nested_tensor = False
    assert later(tokens(), src_key_padding_mask=padding()).isfinite().all()


def test_torchvisions_vision_transformer_takes_it() -> None:
    model = VisionTransformer(64, 16, num_layers=1, num_heads=HEADS, hidden_dim=DIM, mlp_dim=16, num_classes=3)
    attention = create_attention("focused", DIM, HEADS, (4, 4), num_prefix_tokens=1)
    model.encoder.layers[0].self_attention = MultiheadAdapter(attention)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert attention.qkv.weight.grad is not None
    assert not model.eval()(torch.randn(1, 3, 64, 64)).isnan().any()


def test_it_can_be_copied_saved_and_compiled() -> None:
    adapter, x = MultiheadAdapter(make()), tokens()
    expected = adapter(x, x, x, padding(), need_weights=False)[0]
    for twin in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter)), torch.compile(adapter, backend="eager")):
        torch.testing.assert_close(twin(x, x, x, padding(), need_weights=False)[0], expected)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "causal": ({"is_causal": True}, "no causal order"),
    "pairs": ({"attn_mask": torch.zeros(15, 15)}, r"attn_mask is \[15, 15\].*pass key_padding_mask"),
    "weights": ({"key_padding_mask": torch.full((2, 15), 0.5)}, "key_padding_mask must be boolean"),
    "shape": ({"key_padding_mask": torch.zeros(15, dtype=torch.bool)}, r"must be \[batch, keys\], got \[15\]"),
    "length": ({"key_padding_mask": torch.zeros(2, 9, dtype=torch.bool)}, r"\[2, 1, 1, 15\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_it_cannot_do_is_refused(name: str) -> None:
    options, message = WRONG[name]
    x = tokens()
    with pytest.raises(ValueError, match=message):
        MultiheadAdapter(make())(x, x, x, **options)


def test_keys_and_values_must_be_one_tensor() -> None:
    x = tokens()
    with pytest.raises(ValueError, match="key and value must be one tensor"):
        MultiheadAdapter(make())(x, x, x.clone())
