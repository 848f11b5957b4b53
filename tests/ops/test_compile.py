"""torch.compile of the op: whole graphs, equal to eager, no storm of recompilations."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import cpu_vec_isa

from flatten_transformer import focused_linear_attention
from tests.helpers import Case, relative_error

pytestmark = pytest.mark.usefixtures("backend")

CASES = {
    "plain": Case(11, 2, 3, 40, 50, 16, 8),
    "all options": Case(11, 2, 3, 40, 50, 16, 8, 2.5, "per_head", masked=True, with_temperature=True),
    "fewer tokens than channels": Case(11, 2, 3, 7, 5, 16, 16, masked=True),
}
SIZES = [(40, 50), (41, 57), (64, 33), (100, 100), (35, 90)]  # (queries, keys): all in the linear order


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, False) for name in CASES), ("all options", True)], ids=lambda value: str(value)
)
def test_compiled_output_and_gradients_equal_eager_ones(name: str, dynamic: bool) -> None:
    case = CASES[name]
    compiled: Any = torch.compile(focused_linear_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    inputs = case.inputs(torch.float64)
    for came, wanted in zip(case.run(compiled, inputs), case.run(focused_linear_attention, inputs), strict=True):
        assert relative_error(came, wanted) < 1e-13


def test_inductor_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch would compile and load a trial for every other set of instructions too, seconds each
    monkeypatch.setattr(cpu_vec_isa, "supported_vec_isa_list", [cpu_vec_isa.VecAVX2()])
    case = CASES["all options"]
    compiled: Any = torch.compile(focused_linear_attention, fullgraph=True)
    inputs = case.inputs(torch.float64)
    for came, wanted in zip(case.run(compiled, inputs), case.run(focused_linear_attention, inputs), strict=True):
        assert relative_error(came, wanted) < 1e-12


@pytest.mark.parametrize("dynamic", [None, True], ids=["by default", "dynamic"])
def test_changing_sizes_compile_at_most_twice(dynamic: bool | None) -> None:
    counter = CompileCounterWithBackend("eager")
    compiled: Any = torch.compile(focused_linear_attention, fullgraph=True, dynamic=dynamic, backend=counter)
    for queries, keys in SIZES:
        query, key, value = Case(12, 2, 3, queries, keys, 16, 8).inputs(torch.float64)
        assert relative_error(compiled(query, key, value), focused_linear_attention(query, key, value)) < 1e-13
    assert counter.frame_count <= 2


def test_refusals_stay_value_errors_under_compile() -> None:
    compiled: Any = torch.compile(focused_linear_attention, backend="eager")
    query, key, value = CASES["plain"].inputs()
    with pytest.raises(ValueError, match="never forms the query × key matrix"):
        compiled(query, key, value, torch.ones(2, 1, 40, 50, dtype=torch.bool))


class Attention(torch.nn.Module):
    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return focused_linear_attention(query, key, value, mask)


def test_one_exported_graph_serves_every_number_of_tokens() -> None:
    dim = torch.export.Dim
    batch, queries, keys = dim("batch"), dim("queries"), dim("keys")
    shapes = ({0: batch, 2: queries}, {0: batch, 2: keys}, {0: batch, 2: keys}, {0: batch, 3: keys})
    traced = Case(13, 2, 3, 40, 50, 16, 8, masked=True)
    mask = traced.mask()
    assert mask is not None
    program = torch.export.export(Attention(), (*traced.inputs(torch.float64), mask), dynamic_shapes=shapes).module()
    for sizes in [(1, 3, 64, 33), (3, 3, 5, 7)]:
        case = Case(14, *sizes, 16, 8, masked=True)
        mask = case.mask()
        assert mask is not None
        query, key, value = case.inputs(torch.float64)
        assert relative_error(program(query, key, value, mask), focused_linear_attention(query, key, value, mask)) < 1e-13
