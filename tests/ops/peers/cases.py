"""What the tests of the peers share: each op beside its oracle, and random inputs for both."""

# B batch, H heads, N queries, M keys, D channels per head.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatten_transformer.ops import focused_linear_attention, peers
from flatten_transformer.ops.peers import reference


def _relu(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return focused_linear_attention(query, key, value, attn_mask, focusing_factor=1, backend="portable")


def _of_keys(matrix: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda query, key, value, *args, **given: matrix(query, key, *args, **given)


class Peer(NamedTuple):
    """An attention and its oracle."""

    attention: Callable[..., Tensor]
    matrix: Callable[..., Tensor]  # of query, key, value, mask and what is drawn
    more: tuple[str, ...] = ()  # further tensors it takes, see draw
    own_values: bool = False  # as many queries as keys

    def by_the_book(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Tensor) -> Tensor:
        return reference.apply_matrix(self.matrix(query, key, value, attn_mask, **more), value)


PEERS = {
    "relu": Peer(_relu, _of_keys(reference.relu_matrix)),
    "elu": Peer(peers.elu_attention, _of_keys(reference.elu_matrix)),
    "hydra": Peer(peers.hydra_attention, _of_keys(reference.hydra_matrix)),
    "efficient": Peer(peers.efficient_attention, _of_keys(reference.efficient_matrix)),
    "angular": Peer(peers.angular_attention, reference.angular_matrix, own_values=True),
    "softmax": Peer(peers.softmax_attention, _of_keys(reference.softmax_matrix)),
    "inline": Peer(peers.inline_attention, _of_keys(reference.inline_matrix)),
    "polaformer": Peer(peers.polaformer_attention, _of_keys(reference.polaformer_matrix), ("power",)),
    "agent": Peer(peers.agent_attention, _of_keys(reference.agent_matrix), ("agents", "query_bias", "key_bias")),
}


def draw(peer: Peer, batch: int, heads: int, queries: int, keys: int, channels: int, seed: int = 0) -> dict[str, Tensor]:
    """Return every tensor that ``peer`` takes, float64, by name."""
    generator = torch.Generator().manual_seed(seed)
    keys = queries if peer.own_values else keys
    shapes: dict[str, tuple[int, ...]] = {
        "query": (batch, heads, queries, channels),
        "key": (batch, heads, keys, channels),
        "value": (batch, heads, keys, channels),
        "power": (heads, channels),
        "agents": (batch, heads, 6, channels),
        "query_bias": (heads, queries, 6),
        "key_bias": (heads, 6, keys),
    }
    drawn = {
        name: torch.randn(shapes[name], generator=generator, dtype=torch.float64)
        for name in ("query", "key", "value", *peer.more)
    }
    if "power" in drawn:
        drawn["power"] = 1 + 4 * drawn["power"].sigmoid()
    return drawn


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
