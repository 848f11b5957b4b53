"""Whatever the size of queries and keys, up to the largest float32: the attention is the oracle's, on every backend."""

# B batch, H heads, N tokens, D key channels, E value channels per head.

from typing import Any

import pytest
import torch
from torch import Tensor

from flatten_transformer import FocusedLinearAttention, focused_linear_attention
from flatten_transformer.ops import linear_attention, reference
from tests.helpers import output_and_gradients, randomise, relative_error
from tests.layers.designs import Design

MAGNITUDES = [1e-30, 1e-3, 1e10, 1e20, 1e30, 1e38]
# Measured, the worst of all cases here: 4e-7 outputs, 3e-6 gradients (p = 32; cancellation), 2e-2 in bfloat16 interpreted.
TOLERANCE = 1e-5


def draw(magnitude: float, tokens: int = 7) -> list[Tensor]:
    query, key, value = torch.randn(3, 1, 2, tokens, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    return [*((x * magnitude).clamp(-3e38, 3e38) for x in (query, key)), value]


def errors(inputs: list[Tensor], power: float, **options: Any) -> list[float]:
    """Return those of the output and of the gradients of query, key and value; gradients below 1e-30 count for nothing."""
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2))
    backend = options.pop("backend")
    came = output_and_gradients(
        lambda *x: focused_linear_attention(*x, focusing_factor=power, backend=backend, **options), inputs, upstream
    )
    doubles: Any = {name: x.double() if isinstance(x, Tensor) else x for name, x in options.items()}
    wanted = output_and_gradients(
        lambda *x: reference.focused_linear_attention(*x, focusing_factor=power, **doubles),
        [x.double() for x in inputs],
        upstream,
    )
    assert all(x.isfinite().all() for x in came + wanted)
    return [relative_error(x, y) for x, y in zip(came, wanted, strict=True) if y.abs().max() > 1e-30]


@pytest.mark.parametrize("backend", ["portable", "cpp"])
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("norm", ["joint", "per_head"])
def test_no_magnitude_leaves_the_range_of_float32(backend: str, magnitude: float, norm: Any) -> None:
    temperature = torch.linspace(0.5, 1.5, 32).reshape(2, 16)
    for tokens in (7, 70):  # both orders of the products
        for power in (1.0, 2.5, 3.0):
            for given in (None, temperature):
                inputs = draw(magnitude, tokens)
                assert max(errors(inputs, power, temperature=given, norm=norm, backend=backend)) < TOLERANCE


@pytest.mark.parametrize("backend", ["portable", "cpp"])
def test_a_weak_head_is_not_lost_where_its_powers_underflow(backend: str) -> None:
    """By scale invariance: with a negligible eps, a factor on queries and keys changes nothing."""
    query, key, value = draw(1.0)
    query[:, 1], key[:, 1] = query[:, 1] / 8, key[:, 1] / 8
    options: Any = {"focusing_factor": 32, "eps": 1e-30, "backend": backend}
    wanted = focused_linear_attention(query.double(), key.double(), value.double(), **{**options, "eps": 1e-200})
    came = focused_linear_attention(query * 2.0**120, key * 2.0**120, value, **{**options, "eps": 1e-6})
    assert relative_error(came, wanted) < TOLERANCE


@pytest.mark.parametrize("magnitude", [1e-30, 1e20, 1e38])
def test_triton_keeps_every_magnitude_too(magnitude: float) -> None:
    assert max(errors(draw(magnitude), 3.0, backend="triton")) < TOLERANCE


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in Triton's interpreter
@pytest.mark.parametrize("backend", ["portable", "cpp", "triton"])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["query", "key", "value"])
def test_a_nan_stays_one(backend: Any, place: int) -> None:
    inputs = draw(1.0)
    inputs[place][0, 0, 3, 3] = torch.nan
    assert focused_linear_attention(*inputs, backend=backend).isnan().any()


@pytest.mark.parametrize("backend", ["portable", "cpp"])
def test_a_key_encoding_is_added_in_the_dtype_of_sums(backend: Any) -> None:
    large = torch.full((1, 1, 2, 8), 4e4).half()
    out = focused_linear_attention(large, large, large, key_encoding=large[0], backend=backend)
    assert torch.equal(out, large)

    query, key, value = (x.bfloat16() for x in draw(1.0, 64))
    encoding = torch.randn(2, 64, 16).bfloat16()
    inputs = [query, key, value, encoding]
    upstream = torch.randn(1, 2, 64, 16)

    def run(function: Any, tensors: list[Tensor], **options: Any) -> list[Tensor]:
        def call(q: Tensor, k: Tensor, v: Tensor, e: Tensor) -> Tensor:
            out: Tensor = function(q, k, v, key_encoding=e, focusing_factor=32, **options)
            return out

        return output_and_gradients(call, tensors, upstream)

    came = run(focused_linear_attention, inputs, backend=backend)
    wanted = run(reference.focused_linear_attention, [x.double() for x in inputs])
    assert max(relative_error(x, y) for x, y in zip(came, wanted, strict=True)) < 1e-2  # 18 % when added in bfloat16


@pytest.mark.parametrize("backend", ["portable", "cpp"])
def test_the_convolution_adds_what_half_precision_cannot_hold_alone(backend: Any) -> None:
    value = torch.full((1, 1, 1, 8), 6e4).half()
    weight = torch.full((8, 1, 1, 1), -1.5).half()
    out = focused_linear_attention(value, value, value, conv_weight=weight, grid_size=(1, 1), backend=backend)
    assert torch.equal(out, torch.full_like(value, -3e4))


def test_plain_linear_attention_takes_features_of_any_size() -> None:
    for tokens in (7, 70):
        q, k, v = torch.rand(3, 1, 2, tokens, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
        wanted = linear_attention(q.double(), k.double(), v.double(), eps=1e-200)
        assert relative_error(linear_attention(q * 1e30, k * 1e30, v), wanted) < 1e-6


@pytest.mark.parametrize("name", ["hydra", "angular"])
@pytest.mark.parametrize("magnitude", [1e-3, 1e20, 1e38])
def test_norms_of_other_designs_do_not_overflow(name: str, magnitude: float) -> None:
    inputs = draw(magnitude)
    design = Design(name, 2, 7, 7, 16)
    upstream = torch.randn(inputs[0].shape)
    came = output_and_gradients(design.attention, inputs, upstream)
    wanted = output_and_gradients(design.by_the_book, [x.double() for x in inputs], upstream)
    for one, other in zip(came, wanted, strict=True):
        assert one.isfinite().all()
        if other.abs().max() > 1e-30:
            assert relative_error(one, other) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [-20.0, -100.0, -1e4, 60.0])
def test_a_layer_of_any_scale_is_the_one_of_double_precision(dtype: torch.dtype, scale: float) -> None:
    layer = FocusedLinearAttention(16, 2, (2, 3))
    randomise(layer)
    with torch.no_grad():
        assert layer.scale is not None
        layer.scale.fill_(scale)
    x = torch.randn(2, 6, 16).to(dtype)
    layer.to(dtype)
    came = layer(x)
    with torch.no_grad():
        layer.double()
        assert layer.scale is not None
        layer.scale.fill_(max(scale, -60.0))  # all channels alike: how small changes nothing
    assert relative_error(came, layer(x.double())) < (1e-5 if dtype == torch.float32 else 3e-2)
