"""torch.compile and torch.export of the layer: whole graphs, equal to eager, one graph for all grids."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from flatten_transformer import FocusedLinearAttention
from tests.helpers import output_and_gradients, randomise, relative_error

GRIDS = [(5, 7), (9, 4), (6, 11), (8, 8), (7, 5)]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def make_layer(**options: Any) -> FocusedLinearAttention:
    layer = FocusedLinearAttention(32, 4, (5, 7), dtype=torch.float64, **options)
    randomise(layer)
    return layer


@pytest.mark.parametrize(
    ("grid", "options"), [((5, 7), {}), ((9, 4), {"num_prefix_tokens": 2, "norm": "per_head", "focusing_factor": 2.5})], ids=str
)
def test_compiled_output_and_gradients_equal_eager_ones(options: dict[str, Any], grid: tuple[int, int]) -> None:
    layer = make_layer(**options)
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, layer.num_prefix_tokens + grid[0] * grid[1], 32, dtype=torch.float64)
    upstream = torch.randn_like(x)
    results = []
    for module in (compiled, layer):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        out = module(leaf, grid)
        out.backward(upstream)
        results.append([out.detach(), leaf.grad, *(parameter.grad for parameter in layer.parameters())])
    for came, wanted in zip(*results, strict=True):
        assert relative_error(came, wanted) < 1e-12


@pytest.mark.parametrize("dynamic", [None, True], ids=["by default", "dynamic"])
def test_changing_grids_compile_a_few_times_at_most(dynamic: bool | None) -> None:
    """The learned grid, which skips the resizing, and all others: two graphs, and one more before sizes are dynamic."""
    layer = make_layer()
    counter = CompileCounterWithBackend("eager")
    compiled: Any = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=counter)
    for grid in [*GRIDS, *GRIDS]:
        x = torch.randn(2, grid[0] * grid[1], 32, dtype=torch.float64)
        assert relative_error(compiled(x, grid), layer(x, grid)) < 1e-12
    assert counter.frame_count <= 3


def test_dynamic_gradients_equal_eager_ones() -> None:
    layer = make_layer()
    compiled: Any = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for grid in GRIDS[1:3]:
        x, upstream = torch.randn(2, 2, grid[0] * grid[1], 32, dtype=torch.float64).unbind(0)
        came = output_and_gradients(lambda x, grid=grid: compiled(x, grid), [x], upstream)
        wanted = output_and_gradients(lambda x, grid=grid: layer(x, grid), [x], upstream)
        for one, other in zip(came, wanted, strict=True):
            assert relative_error(one, other) < 1e-12


class OnImages(torch.nn.Module):
    """The layer over ``[B, C, height, width]``, whose sizes are the grid."""

    def __init__(self, layer: FocusedLinearAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.layer(image.flatten(2).transpose(1, 2), image.shape[2:])
        return out


def test_one_exported_graph_serves_every_batch_height_and_width() -> None:
    module = OnImages(make_layer()).eval()
    dim = torch.export.Dim
    shapes = {"image": {0: dim("batch"), 2: dim("height"), 3: dim("width")}}
    traced = torch.randn(2, 32, 6, 11, dtype=torch.float64)
    program = torch.export.export(module, (traced,), dynamic_shapes=shapes).module()
    for batch, height, width in [(1, 5, 7), (3, 9, 4), (2, 20, 31)]:
        image = torch.randn(batch, 32, height, width, dtype=torch.float64)
        assert relative_error(program(image), module(image)) < 1e-12
