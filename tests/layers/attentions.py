"""What the tests of the registered attentions share: one of each, small, with parameters of a trained size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flatten_transformer.layers import create_attention, list_attentions
from tests.helpers import randomise

ALL = list_attentions()
EVERY = pytest.mark.parametrize("name", ALL)


def make(name: str, grid: tuple[int, ...] = (5, 7), dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    if name == "agent" and "num_agents" not in options:
        options["num_agents"] = 2 ** len(grid)
    layer = create_attention(name, 16, options.pop("num_heads", 2), grid, **options)
    randomise(layer)
    return layer.to(dtype).eval()


def tokens(layer: Any, grid: tuple[int, ...], batch: int = 2) -> Tensor:
    return torch.randn(batch, layer.num_prefix_tokens + torch.Size(grid).numel(), 16, dtype=layer.proj.weight.dtype)
