"""The convolution of the values is a module to everybody: hooked, pruned, wrapped, replaced, its say counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.layers import create_attention, list_attentions
from flatten_transformer.layers.rank_restoration import may_read

CONVOLVING = [name for name in list_attentions() if name not in ("inline", "relu")]


def make(name: str = "focused", **options: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    options = {"rank_restoration": True, **({"num_agents": 4} if name == "agent" else {}), **options}
    layer = create_attention(name, 16, 2, (3, 4), **options).double()
    return layer, torch.randn(2, 12, 16, dtype=torch.float64)


def scaled(layer: Any) -> Any:
    """Return a copy whose convolution gives twice as much, and one more, by its weights alone."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.dwc.weight *= 2
        other.dwc.bias.mul_(2).add_(1)
    return other


def by_wrapping(layer: Any) -> None:
    plain = layer.dwc.forward
    layer.dwc.forward = lambda maps: 2 * plain(maps) + 1


def by_a_hook(layer: Any) -> None:
    layer.dwc.register_forward_hook(lambda module, args, maps: 2 * maps + 1)


def by_a_hook_before(layer: Any) -> None:
    plain = layer.dwc.bias.detach().clone()
    layer.dwc.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    with torch.no_grad():
        layer.dwc.bias.copy_(2 * plain + 1)


def by_replacing(layer: Any) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, maps: Tensor) -> Tensor:
            adapted: Tensor = 2 * self.base(maps) + 1
            return adapted

    layer.dwc = Adapted(layer.dwc)


def by_a_subclass(layer: Any) -> None:
    class Adapted(nn.Conv2d):
        def forward(self, maps: Tensor) -> Tensor:
            return 2 * super().forward(maps) + 1

    layer.dwc.__class__ = Adapted


def by_fetching(layer: Any) -> None:
    """Keep the weights away, and bring in others for a call, as accelerate's offloading does."""
    dwc, plain, kept = layer.dwc, layer.dwc.forward, dict(scaled(layer).dwc.named_parameters())
    away = {name: nn.Parameter(value.to("meta")) for name, value in kept.items()}

    def forward(maps: Tensor) -> Tensor:
        dwc._parameters.update(kept)
        try:
            convolved: Tensor = plain(maps)
            return convolved
        finally:
            dwc._parameters.update(away)

    dwc._parameters.update(away)
    dwc.forward = forward


WAYS: list[Callable[[Any], None]] = [by_wrapping, by_a_hook, by_a_hook_before, by_replacing, by_a_subclass, by_fetching]


@pytest.mark.parametrize("name", CONVOLVING)
@pytest.mark.parametrize("change", WAYS)
def test_whoever_changes_the_convolution_changes_the_layer(name: str, change: Callable[[Any], None]) -> None:
    layer, x = make(name)
    wanted = scaled(layer)(x)
    change(layer)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CONVOLVING)
def test_prefix_tokens_and_masks_are_the_same_called_as_read(name: str) -> None:
    layer, x = make(name, num_prefix_tokens=1)
    x = torch.cat([x[:, :1], x], dim=1)
    mask = torch.ones(2, 1, 1, 13, dtype=torch.bool)
    mask[1, ..., 9:] = False
    wanted = layer(x, attn_mask=mask)
    layer.dwc.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(layer(x, attn_mask=mask), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CONVOLVING)
def test_pruned_weights_learn_step_after_step(name: str) -> None:
    layer, x = make(name)
    prune.l1_unstructured(layer.dwc, "weight", 0.5)
    for _ in range(2):
        layer(x).square().sum().backward()
    assert layer.dwc.weight_orig.grad.abs().sum() > 0


@pytest.mark.parametrize("normalise", [spectral_norm, parametrizations.spectral_norm, parametrizations.weight_norm])
def test_a_normalised_weight_is_the_one_that_counts_and_learns(normalise: Callable[..., nn.Module]) -> None:
    layer, x = make()
    normalise(layer.dwc)
    out = layer.eval()(x)
    plain, _ = make()
    with torch.no_grad():
        plain.dwc.weight.copy_(layer.dwc.weight)
    torch.testing.assert_close(out, plain(x), rtol=1e-12, atol=1e-12)
    out.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.dwc.parameters())


def test_every_kind_of_hook_sees_the_convolution() -> None:
    every = nn.modules.module
    seen: list[str] = []

    def note(kind: str) -> Callable[..., None]:
        return lambda module, *_: seen.append(kind) if isinstance(module, nn.Conv2d) else None

    on_itself = (
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    )
    on_all = ("register_module_forward_hook", "register_module_forward_pre_hook", "register_module_full_backward_hook")
    for name in (*on_itself, *on_all):
        layer, x = make()
        handle = getattr(layer.dwc if name in on_itself else every, name)(note(name))
        try:
            layer(x.requires_grad_()).sum().backward()
        finally:
            handle.remove()
        assert seen == [name]
        seen.clear()


@torch.no_grad()
def test_another_convolution_may_stand_there_if_it_keeps_the_map() -> None:
    layer, x = make()
    plain, dilated = layer.dwc, nn.Conv2d(8, 8, 3, padding=2, dilation=2, padding_mode="circular", dtype=torch.float64)
    layer.dwc = None
    without = layer(x)
    layer.dwc = dilated
    values = layer.qkv(x).chunk(3, dim=2)[2].unflatten(2, (2, 8)).permute(0, 2, 3, 1).reshape(4, 8, 3, 4)
    convolved = dilated(values).reshape(2, 2, 8, 12).permute(0, 3, 1, 2).flatten(2)
    wanted = without + convolved @ layer.proj.weight.T
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)
    assert not may_read(dilated, torch.empty(1, 1, 12, 8, dtype=torch.float64))
    assert may_read(plain, torch.empty(1, 1, 12, 8, dtype=torch.float64))
    layer.dwc = nn.Conv2d(8, 8, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"keep the size of the map, which is \[4, 8, 3, 4\], and it returns \[4, 8, 1, 2\]"):
        layer(x)


def test_weights_elsewhere_or_of_another_kind_are_not_read() -> None:
    class Quantised(nn.Parameter):
        pass

    value = torch.empty(1, 1, 12, 8)
    for axes, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), start=1):
        plain = FocusedLinearAttention(8, 1, (2,) * axes).dwc
        assert type(plain) is kind
        assert may_read(plain, value)
        assert not may_read(plain, value.to("meta"))
        plain.weight = Quantised(plain.weight.detach())
        assert not may_read(plain, value)


@pytest.mark.parametrize("name", ["focused", "efficient"])
@pytest.mark.parametrize("change", [None, by_a_hook, by_replacing])
def test_one_compiled_graph_holds_the_convolution_read_or_called(name: str, change: Callable[[Any], None] | None) -> None:
    layer, x = make(name)
    if change:
        change(layer)
    torch.compiler.reset()  # PyTorch guards no hooks: it would take the last graph
    compiled: Any = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)
