"""Every layer of every model is what tools look for, and is called: whatever stands in its place or around it takes part."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from timm.layers import Mlp
from torch import nn

_PYRAMID: dict[str, Any] = {
    "depths": (1, 1, 1, 1),
    "embed_dims": (8, 8, 8, 8),
    "num_heads": (1, 1, 1, 1),
    "mlp_ratios": (1, 1, 1, 1),
}
_STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "embed_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("flatten_deit_tiny_patch16_224", {"depth": 1, "embed_dim": 12}),
    "deit by polaformer": ("flatten_deit_tiny_patch16_224", {"depth": 1, "embed_dim": 12, "attention": "polaformer"}),
    "deit by agents": ("flatten_deit_tiny_patch16_224", {"depth": 1, "embed_dim": 12, "attention": "agent"}),
    "pvt": ("flatten_pvt_tiny", {**_PYRAMID, "attn_types": "LLSS", "sr_ratios": 2}),
    "pvt_v2": ("flatten_pvt_v2_b0", {**_PYRAMID, "attn_types": "LLSS", "sr_ratios": 2}),
    "swin": ("flatten_swin_tiny_patch4_224", _STAGES),
    "cswin": ("flatten_cswin_tiny_224", _STAGES),
    "cswin by inline": ("flatten_cswin_tiny_224", {**_STAGES, "attention": "inline", "split_sizes": 2}),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    name, options = MODELS[request.param]
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, img_size=64, num_classes=3, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_layers_are_of_the_very_classes_of_pytorch_and_timm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.GELU):
            if kind is not nn.LayerNorm:  # of which timm has its own
                assert not isinstance(module, kind) or type(module).forward is kind.forward, name
                assert not isinstance(module, kind) or kind is nn.GELU or type(module) is kind, name
        assert not isinstance(module, Mlp) or type(module) is Mlp, name


@torch.no_grad()
def test_every_module_is_seen_by_hooks_on_all_modules(model: nn.Module) -> None:
    calls: Counter[nn.Module] = Counter()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.update([module]))
    try:
        model(torch.randn(1, 3, 64, 64))
    finally:
        handle.remove()
    uncalled = {name for name, module in model.named_modules() if [*module.parameters(recurse=False)] and not calls[module]}
    assert uncalled - {"norm"} == set()  # which PVT owns and never applies, as released
    assert not any(isinstance(module, nn.GELU) and not calls[module] for module in model.modules())


@torch.no_grad()
def test_weights_that_each_module_fetches_for_its_call_are_enough(model: nn.Module) -> None:
    x = torch.randn(1, 3, 64, 64)
    wanted = model(x)

    def offload(module: nn.Module, own: dict[str, nn.Parameter]) -> None:
        away = {name: nn.Parameter(value.detach().to("meta")) for name, value in own.items()}
        plain = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            module._parameters.update(own)
            try:
                return plain(*args, **kwargs)
            finally:
                module._parameters.update(away)

        module.forward = forward
        module._parameters.update(away)

    for module in model.modules():
        offload(module, dict(module.named_parameters(recurse=False)))
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_weights_of_linear_layers_give_the_same_scores(model: nn.Module) -> None:
    x = torch.randn(1, 3, 64, 64)
    wanted = model(x)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().to_sparse_csr())
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamic_quantization_takes_every_linear_layer(model: nn.Module) -> None:
    count = sum(isinstance(module, nn.Linear) for module in model.modules())
    quantized: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    kinds = Counter(type(module) for module in quantized.modules())
    assert kinds[torch.ao.nn.quantized.dynamic.Linear] == count > 0
    assert kinds[nn.Linear] == 0
    assert quantized(torch.randn(1, 3, 64, 64)).isfinite().all()
