"""The projections are nn.Linear to everybody who looks, and the same numbers whoever multiplies."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.layers import projection
from flatten_transformer.layers.projection import Projection, ProjectionMlp, use_projections
from tests.helpers import TOLERANCES, relative_error

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that grows by what each call decided: oneDNN or not."""
    decided: list[bool] = []
    fits: Callable[..., bool] = projection._fits_onednn

    def decide(x: Tensor, weight: Tensor) -> bool:
        decided.append(fits(x, weight))
        return decided[-1]

    monkeypatch.setattr(projection, "_fits_onednn", decide)
    return decided


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 5, 24), (2, 3, 5, 24), (0, 24)], ids=str)
def test_inference_runs_in_onednn_and_gives_the_same_numbers(bias: bool, shape: tuple[int, ...], calls: list[bool]) -> None:
    layer, x = Projection(24, 40, bias=bias), torch.randn(*shape)
    with torch.no_grad():
        came = layer(x)
    assert calls == [len(shape) > 1]
    wanted = nn.functional.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    assert came.shape == wanted.shape
    assert relative_error(came, wanted) <= TOLERANCES[torch.float32]


@needs_onednn
def test_strided_tokens_give_what_contiguous_ones_give() -> None:
    layer, x = Projection(24, 40), torch.randn(2, 5, 72)[..., ::3]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_gradients_and_autocast_stay_with_pytorch(dtype: torch.dtype, calls: list[bool]) -> None:
    layer = Projection(24, 40)
    assert layer(torch.randn(5, 24)).requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(5, 24)).dtype == torch.bfloat16
    layer.to(dtype)
    with torch.no_grad():
        assert layer(torch.randn(5, 24, dtype=dtype)).dtype == dtype
    assert not any(calls)


@torch.no_grad()
def test_counters_transforms_and_traces_see_a_plain_linear_layer() -> None:
    layer, x = Projection(24, 40), torch.randn(3, 5, 24)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 15 * 24 * 40
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
    exported = torch.export.export(layer, (x,)).graph_module.code
    assert "linear" in exported
    assert "mkldnn" not in exported


def mlp_pair(**options: Any) -> tuple[Mlp, nn.Module]:
    """Return timm's MLP and the same one of ours."""
    plain = Mlp(24, 40, **options).eval()
    holder = nn.Sequential(copy.deepcopy(plain))
    use_projections(holder)
    return plain, holder[0]


@needs_onednn
@torch.no_grad()
def test_an_mlp_applies_gelu_in_its_first_product_and_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = mlp_pair(drop=0.5)
    x = 3 * torch.randn(2, 5, 24)
    wanted = copy.deepcopy(plain).double()(x.double())
    monkeypatch.setattr(nn.GELU, "forward", None)  # nobody calls it
    assert isinstance(ours, ProjectionMlp)
    assert relative_error(ours(x), wanted) <= TOLERANCES[torch.float32]


@needs_onednn
@pytest.mark.parametrize(
    "options",
    [{"act_layer": nn.ReLU}, {"act_layer": partial(nn.GELU, approximate="tanh")}, {"norm_layer": nn.LayerNorm}],
    ids=["relu", "tanh", "norm"],
)
@torch.no_grad()
def test_another_mlp_runs_step_by_step(options: dict[str, Any]) -> None:
    plain, ours = mlp_pair(**options)
    x = 3 * torch.randn(2, 5, 24)
    assert relative_error(ours(x), copy.deepcopy(plain).double()(x.double())) <= TOLERANCES[torch.float32]


@torch.no_grad()
def test_an_mlp_in_training_drops() -> None:
    _, ours = mlp_pair(drop=1.0)
    assert torch.equal(ours.train()(torch.randn(2, 5, 24)), torch.zeros(2, 5, 24))


@torch.no_grad()
def test_hooks_on_the_parts_of_an_mlp_see_what_passes() -> None:
    _, ours = mlp_pair()
    seen: list[torch.Size] = []
    ours.get_submodule("act").register_forward_hook(lambda module, args, output: seen.append(output.shape))
    ours(torch.randn(2, 5, 24))
    assert seen == [(2, 5, 40)]


def test_parameters_are_those_of_a_linear_layer() -> None:
    layer = FocusedLinearAttention(32, 2, (2, 2))
    assert isinstance(layer.qkv, nn.Linear)
    assert {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"} <= set(layer.state_dict())


def test_hooks_still_run() -> None:
    layer, seen = Projection(24, 40), []
    layer.register_forward_hook(lambda _module, _args, out: seen.append(out.shape))
    with torch.no_grad():
        out: Tensor = layer(torch.randn(2, 24))
    assert seen == [out.shape]


@torch.no_grad()
def test_every_linear_layer_of_a_model_from_the_registry_is_a_projection_with_the_same_parameters() -> None:
    model = timm.create_model("flatten_pvt_v2_b0", num_classes=5)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) > 20
    assert {type(module) for module in linear} == {Projection}

    plain = nn.Sequential(nn.Linear(24, 40, bias=False), nn.Sequential(nn.Linear(40, 8))).eval()
    parameters, x = dict(plain.named_parameters()), torch.randn(3, 24)
    wanted = plain(x)
    use_projections(plain)
    assert all(parameters[name] is parameter for name, parameter in plain.named_parameters())
    assert not any(module.training for module in plain.modules())
    torch.testing.assert_close(plain(x), wanted)
