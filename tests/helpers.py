"""What several test files share: random cases, gradients, errors, a hook on every tensor made, the layer by the book."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.ops import reference
from flatten_transformer.ops.checks import Norm

# Relative errors allowed against the float64 oracle, which gets the same rounded inputs.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1.2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclass(frozen=True)
class Case:
    """Sizes and options of one attention, from which its tensors are drawn; its repr reproduces it."""

    seed: int
    batch: int
    heads: int
    queries: int
    keys: int
    key_channels: int
    value_channels: int
    focusing_factor: float = 3.0
    norm: Norm = "joint"
    masked: bool = False
    with_temperature: bool = False

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return query, key, value and, where there is one, the temperature: half precision rounds them all."""
        lead = (self.batch, self.heads)
        shapes = [(self.queries, self.key_channels), (self.keys, self.key_channels), (self.keys, self.value_channels)]
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randn(*lead, *shape, generator=generator) for shape in shapes]
        if self.with_temperature:
            drawn.append(0.5 + torch.rand(self.heads, self.key_channels, generator=generator))
        return [tensor.to(dtype) for tensor in drawn]

    def mask(self) -> Tensor | None:
        """Return a mask that keeps at least one key of each sample, ``[B, 1, 1, M]``, or None."""
        if not self.masked:
            return None
        generator = torch.Generator().manual_seed(self.seed + 1)
        kept = torch.rand(self.batch, 1, 1, self.keys, generator=generator) < 0.8
        kept[..., 0] |= ~kept.any(dim=3)
        return kept

    def upstream(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 2)
        return torch.randn(self.batch, self.heads, self.queries, self.value_channels, generator=generator)

    def options(self) -> dict[str, Any]:
        return {"attn_mask": self.mask(), "focusing_factor": self.focusing_factor, "norm": self.norm}

    def run(self, attention: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor | None = None) -> list[Tensor]:
        """Return the output of ``attention`` and the gradients with respect to every input."""

        def call(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor | None = None) -> Tensor:
            return attention(query, key, value, temperature=temperature, **self.options())

        return output_and_gradients(call, inputs, self.upstream() if upstream is None else upstream)


def output_and_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """Return ``function(*inputs)`` and the gradients of its product with ``upstream``, one an input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


def relative_error(came: Tensor, wanted: Tensor) -> float:
    """Return ‖came - wanted‖ / ‖wanted‖ (Frobenius); 0 where both are zero, infinite for a NaN."""
    assert came.shape == wanted.shape, (came.shape, wanted.shape)
    came, wanted = came.detach().double(), wanted.detach().double()
    distance = float((came - wanted).norm())
    if distance == 0:
        return 0.0
    return distance / float(wanted.norm()) if distance == distance else float("inf")


def attention_terms(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    focusing_factor: float,
    norm: Norm,
    temperature: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Return the oracle's output with the normaliser held constant: differentiated, it gives the numerator's part.

    Fed with ``|value|`` and ``|upstream|`` that part is the size of the terms which cancel in the true gradient:
    with one key the output does not depend on the query, and its gradient is the rounding of their difference.
    """
    query, key = torch.relu(query) + eps, torch.relu(key) + eps
    if temperature is not None:
        query, key = query / temperature[:, None, :], key / temperature[:, None, :]
    q, k = (reference.focused_function(x, focusing_factor, norm=norm) for x in (query, key))
    products = q @ k.transpose(2, 3)  # [B, H, N, M]
    kept = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool) if attn_mask is None else attn_mask
    products = products * kept / kept.sum(dim=3, keepdim=True)
    return products / (products.sum(dim=3, keepdim=True) + eps).detach() @ value


class TensorsMade(TorchDispatchMode):
    """Counts the elements of every tensor that any operation returns, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
                self.total += leaf.numel()
        return result


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter with noise of a trained size: no zero encodings, no projections of 0.02."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 and parameter.shape[0] > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) / fan_in**0.5
            parameter.copy_(noise.to(parameter.dtype))


def layer_by_the_book(
    layer: FocusedLinearAttention,
    parameters: dict[str, Tensor],
    x: Tensor,
    grid_size: Sequence[int],
    context: Tensor | None = None,
    context_grid_size: Sequence[int] | None = None,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Return what ``layer`` shall compute from ``parameters``, in their dtype: the oracle and plain convolutions."""
    prefix, heads = layer.num_prefix_tokens, layer.num_heads
    if context is None:
        query, key, value = F.linear(x, parameters["qkv.weight"], parameters.get("qkv.bias")).chunk(3, dim=-1)
        context_grid = tuple(grid_size)
    else:
        assert context_grid_size is not None
        query = F.linear(x, parameters["q.weight"], parameters.get("q.bias"))
        key, value = F.linear(context, parameters["kv.weight"], parameters.get("kv.bias")).chunk(2, dim=-1)
        context_grid = tuple(context_grid_size)
    channels = query.shape[2]

    if "positional_encoding" in parameters:
        encoding = parameters["positional_encoding"]
        if context_grid != layer.grid_size:
            image = encoding.reshape(1, *layer.grid_size, channels).movedim(-1, 1)
            mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(context_grid)]
            image = F.interpolate(image, size=context_grid, mode=mode, align_corners=False)
            encoding = image.movedim(1, -1).reshape(1, -1, channels)
        key = torch.cat([key[:, :prefix], key[:, prefix:] + encoding], dim=1)

    q, k, v = (t.reshape(*t.shape[:2], heads, channels // heads).transpose(1, 2) for t in (query, key, value))
    temperature = None
    if "scale" in parameters:
        temperature = torch.log1p(parameters["scale"].exp()).reshape(heads, channels // heads)
    out = reference.focused_linear_attention(
        q, k, v, attn_mask, focusing_factor=layer.focusing_factor, temperature=temperature, norm=layer.norm
    ).clone()

    if "dwc.weight" in parameters:
        weight = parameters["dwc.weight"]
        visible = v if attn_mask is None else torch.where(attn_mask.transpose(2, 3), v, torch.zeros_like(v))
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(context_grid)]
        restored = []
        for head in range(heads):
            tokens = visible[:, head, prefix:]
            if context_grid != tuple(grid_size):
                if layer.stretch == "grid":
                    image = tokens.reshape(x.shape[0], *context_grid, -1).movedim(-1, 1)
                    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(context_grid)]
                    image = F.interpolate(image, size=tuple(grid_size), mode=mode, align_corners=False)
                else:
                    count = x.shape[1] - prefix
                    stretched = F.interpolate(tokens.transpose(1, 2), size=count, mode="linear", align_corners=False)
                    image = stretched.reshape(x.shape[0], -1, *grid_size)
            else:
                image = tokens.reshape(x.shape[0], *grid_size, -1).movedim(-1, 1)
            image = convolve(image, weight, parameters["dwc.bias"], padding=weight.shape[-1] // 2, groups=weight.shape[0])
            restored.append(image.movedim(1, -1).reshape(x.shape[0], -1, channels // heads))
        grid_out = out[:, :, prefix:] + torch.stack(restored, dim=1)
        out = torch.cat([out[:, :, :prefix], grid_out], dim=2)

    return F.linear(out.transpose(1, 2).flatten(2), parameters["proj.weight"], parameters.get("proj.bias"))
