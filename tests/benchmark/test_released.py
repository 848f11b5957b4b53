"""The form that every speed is set against is right: it equals the oracle, and models compute by it when told to."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.benchmark.released import released_attention, use_released_form
from flatten_transformer.ops import reference
from tests.helpers import output_and_gradients, randomise, relative_error

HEADS, GRID, CHANNELS = 3, (5, 7), 24
TOKENS, PER_HEAD = GRID[0] * GRID[1], CHANNELS // HEADS
SHAPES = [(2, TOKENS, CHANNELS)] * 3 + [(1, TOKENS, CHANNELS), (1, 1, CHANNELS), (PER_HEAD, 1, 5, 5), (PER_HEAD,)]


def oracle(
    q: Tensor, k: Tensor, v: Tensor, encoding: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, power: float
) -> Tensor:
    q, k, v, e, t = (x.unflatten(-1, (HEADS, PER_HEAD)).transpose(1, 2) for x in (q, k, v, encoding, scale.exp()))
    options: dict[str, Any] = {"temperature": t[0, :, 0], "key_encoding": e[0], "conv_weight": weight, "conv_bias": bias}
    out = reference.focused_linear_attention(q, k, v, focusing_factor=power, grid_size=GRID, **options)
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("power", [1, 3, 2.5])
def test_the_released_form_equals_the_oracle_with_everything_on(power: float) -> None:
    def released(q: Tensor, k: Tensor, v: Tensor, encoding: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options: dict[str, Any] = {"positional_encoding": encoding, "temperature": scale.exp(), "focusing_factor": power}
        return released_attention(q, k, v, num_heads=HEADS, conv_weight=weight, conv_bias=bias, grid_size=GRID, **options)

    inputs = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    upstream = torch.randn(SHAPES[0], dtype=torch.float64)
    came = output_and_gradients(released, inputs, upstream)
    wanted = output_and_gradients(partial(oracle, power=power), inputs, upstream)
    for one, other in zip(came, wanted, strict=True):
        assert relative_error(one, other) < 1e-12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flatten_deit_tiny_patch16_224", {"depth": 1}),
        ("flatten_pvt_tiny", {"sr_ratios": (8, 4, 2, 1)}),
        ("flatten_cswin_tiny_224", {}),
    ],
)
def test_a_model_on_the_released_form_computes_the_same(name: str, options: dict[str, Any]) -> None:
    model = timm.create_model(name, img_size=64, num_classes=5, **options).double().eval()
    randomise(model)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    ours = model(image)
    released = use_released_form(model)(image)
    assert 0 < relative_error(released, ours) < 1e-9  # not bit for bit: it was another computation


def test_a_mask_is_refused_and_other_models_stay_as_they_are() -> None:
    layers, x = [FocusedLinearAttention(8, 2, (3, 4)) for _ in range(2)], torch.randn(2, 12, 8)
    mask = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="no key mask"):
        use_released_form(layers[0])(x, attn_mask=mask)
    assert layers[1](x, attn_mask=mask).shape == x.shape


@pytest.mark.parametrize("options", [{"norm": "per_head"}, {"num_prefix_tokens": 1, "grid_size": (11,)}, {"grid_size": (12,)}])
def test_what_the_released_form_cannot_do_is_refused(options: dict[str, Any]) -> None:
    layer = FocusedLinearAttention(8, 2, **{"grid_size": (3, 4), **options})
    with pytest.raises(RuntimeError, match="the released form"):
        use_released_form(layer)(torch.randn(2, 12, 8))
