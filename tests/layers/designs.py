"""Each registered design beside its oracle, as functions of heads, and random inputs for both."""

# B batch, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flatten_transformer.layers import create_attention, list_attentions
from flatten_transformer.layers.attention.layout import Layout, apply_matrix
from tests.helpers import randomise

BARE: dict[str, Any] = {"rank_restoration": False, "key_encoding": False, "temperature": False, "projections": False}
OWN: dict[str, dict[str, Any]] = {"agent": {"num_agents": 4}, "polaformer": {"gated": False}, "focused": {"backend": "portable"}}
DESIGNS = [name for name in list_attentions() if name != "enhanced"]  # bare, it is "relu"


class Design:
    """A design without anything around it; what it learns counts among its tensors.

    Args:
        name: Of the design.
        heads: Heads.
        queries: Queries N, which are a line.
        keys: Keys M.
        channels: Channels per head D.
        own: Its own options.
    """

    def __init__(self, name: str, heads: int, queries: int, keys: int, channels: int, **own: Any) -> None:
        self.name, self.heads = name, heads
        keys = queries if name == "angular" else keys  # which needs its own values
        self.layer: Any = create_attention(name, heads * channels, heads, (max(keys, 1),), **BARE, **OWN.get(name, {}), **own)
        randomise(self.layer.double())
        self.shapes = {"query": (queries, channels), "key": (keys, channels), "value": (keys, channels)}
        self.learned = dict(self.layer.named_parameters())

    def draw(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Return every tensor that decides the output, float64, by name."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            name: torch.randn(batch, self.heads, *shape, generator=generator, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        return drawn | {name: x.detach().clone() for name, x in self.learned.items()}

    def attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **learned: Tensor) -> Tensor:
        """Return ``[B, H, N, D]`` as the layer computes it."""
        out = self._with(learned, "compute", query, key, value, self._layout(query, key, attn_mask), None)
        return out.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def by_the_book(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **learned: Tensor
    ) -> Tensor:
        """Return ``[B, H, N, D]`` by the literal matrix."""
        return apply_matrix(self.matrix(query, key, value, attn_mask, **learned), value)

    def matrix(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **learned: Tensor) -> Tensor:
        """Return the literal matrix, ``[B, G, N, M]``."""
        return self._with(learned, "weights", query, key, value, self._layout(query, key, attn_mask))

    def _layout(self, query: Tensor, key: Tensor, attn_mask: Tensor | None) -> Layout:
        return Layout((query.shape[2],), (key.shape[2],), attn_mask, cross=query.shape[2] != key.shape[2])

    def _with(self, learned: dict[str, Tensor], method: str, *args: Any) -> Tensor:
        """Call a method of the layer with other parameters."""
        self.layer.forward = getattr(self.layer, method)
        try:
            called: Tensor = torch.func.functional_call(self.layer, learned, args)
        finally:
            del self.layer.forward
        return called


def draw_mask(batch: int, keys: int, seed: int = 0) -> Tensor:
    """Return a mask that keeps at least one key of each sample, ``[B, 1, 1, M]``."""
    kept = torch.rand(batch, 1, 1, keys, generator=torch.Generator().manual_seed(seed)) < 0.7
    kept[..., 0] |= ~kept.any(dim=3)
    return kept


def call(function: Callable[..., Tensor], names: list[str], attn_mask: Tensor | None, **given: Any) -> Callable[..., Tensor]:
    """Return ``function`` of tensors alone, in the order of ``names``."""

    def of_tensors(*tensors: Tensor) -> Tensor:
        named = dict(zip(names, tensors, strict=True))
        return function(named.pop("query"), named.pop("key"), named.pop("value"), attn_mask, **named, **given)

    return of_tensors
