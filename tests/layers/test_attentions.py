"""What every registered attention owes: registering one is what tests it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flatten_transformer.layers import (
    create_attention,
)
from tests.helpers import TensorsMade, relative_error
from tests.layers.attentions import ALL, EVERY, make, tokens

ELSEWHERE = pytest.mark.parametrize("name", [name for name in ALL if name != "angular"])  # which needs its own values
GRIDS = [((35,), (50,)), ((5, 7), (5, 7)), ((5, 7), (9, 4)), ((5, 7), (1, 1)), ((3, 4, 5), (4, 3, 2))]


def draw_mask(x: Tensor) -> Tensor:
    kept = torch.rand(x.shape[0], 1, 1, x.shape[1]) < 0.7
    kept[..., 0] |= ~kept.any(dim=3)
    return kept


def test_the_designs_of_the_paper_and_their_successors_are_there() -> None:
    paper = ["focused", "relu", "enhanced", "elu", "hydra", "efficient", "angular", "softmax"]
    assert set(paper) | {"agent", "inline", "polaformer"} <= set(ALL)


@EVERY
@pytest.mark.parametrize(("learned", "grid"), GRIDS, ids=str)
@pytest.mark.parametrize("num_prefix_tokens", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_the_output_is_the_matrix_times_the_values_and_the_convolution(
    name: str, learned: tuple[int, ...], grid: tuple[int, ...], num_prefix_tokens: int, masked: bool
) -> None:
    layer = make(name, learned, num_prefix_tokens=num_prefix_tokens)
    x = tokens(layer, grid)
    mask = draw_mask(x) if masked else None
    parts = layer.decompose(x, grid, attn_mask=mask)
    assert parts.matrix.shape[2:] == (x.shape[1], x.shape[1])
    assert relative_error(layer(x, grid, attn_mask=mask), layer.proj(parts.output())) < 1e-11


@EVERY
def test_gradients_are_those_of_the_matrix_form(name: str) -> None:
    layer = make(name, num_prefix_tokens=1, key_encoding=True, temperature=True, rank_restoration=True)
    x = tokens(layer, (4, 6)).requires_grad_()
    mask, upstream = draw_mask(x), torch.randn_like(x)
    leaves = [x, *layer.parameters()]
    came = torch.autograd.grad((layer(x, (4, 6), attn_mask=mask) * upstream).sum(), leaves)
    by_matrix = layer.proj(layer.decompose(x, (4, 6), attn_mask=mask).output())
    wanted = torch.autograd.grad((by_matrix * upstream).sum(), leaves)
    for part, one, other in zip(["x", *dict(layer.named_parameters())], came, wanted, strict=True):
        assert float((one - other).norm()) <= 1e-10 * max(1.0, float(other.norm())), part
        assert one.norm() > 0, part


@ELSEWHERE
def test_cross_attention_between_grids_is_the_matrix_form_too(name: str) -> None:
    layer = make(name, (5, 7), context_dim=12)
    x, context = tokens(layer, (9, 4)), torch.randn(2, 35, 12, dtype=torch.float64)
    given: dict[str, Any] = {"context": context, "context_grid_size": (5, 7)}
    mask = torch.rand(2, 1, 1, 35) < 0.7
    parts = layer.decompose(x, (9, 4), attn_mask=mask, **given)
    assert parts.matrix.shape[2:] == (36, 35)
    assert relative_error(layer(x, (9, 4), attn_mask=mask, **given), layer.proj(parts.output())) < 1e-11


@ELSEWHERE
def test_a_reduced_map_is_a_context(name: str) -> None:
    layer = make(name, (2, 2), sr_ratio=4)
    x = tokens(layer, (7, 9))
    assert relative_error(layer(x, (7, 9)), layer.proj(layer.decompose(x, (7, 9)).output())) < 1e-11
    with pytest.raises(ValueError, match="makes its context of x, sr_ratio 4: leave context out"):
        layer(x, (7, 9), context=x)


def test_what_cannot_attend_elsewhere_says_so_when_it_is_made() -> None:
    assert make("angular", sr_ratio=1).sr_ratio == 1
    wrong: list[dict[str, Any]] = [{"context_dim": 16}, {"sr_ratio": 2}]
    for options in wrong:
        with pytest.raises(ValueError, match="AngularAttention mixes a token with its own value"):
            create_attention("angular", 16, 2, (5, 7), **options)


@EVERY
@pytest.mark.parametrize("garbage", [float("nan"), 1e6])
def test_what_lies_in_padding_never_matters(name: str, garbage: float) -> None:
    layer = make(name, num_prefix_tokens=1)
    x = tokens(layer, (5, 7))
    mask = draw_mask(x)
    kept = mask[:, 0, 0]
    dirty = x.masked_fill(~kept[:, :, None], garbage)
    clean, came = layer(x, attn_mask=mask), layer(dirty, attn_mask=mask)
    assert torch.equal(came[kept], clean[kept])


@EVERY
def test_a_mask_over_pairs_is_refused(name: str) -> None:
    layer = make(name)
    x = tokens(layer, (5, 7))
    with pytest.raises(ValueError, match="can leave out keys but not single query-key pairs"):
        layer(x, attn_mask=torch.ones(2, 1, 35, 35, dtype=torch.bool))


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_finite_and_near_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    layer = make(name, (14, 14), torch.float32)
    x = tokens(layer, (14, 14))
    expected = layer(x)
    layer.to(dtype)
    half = x.to(dtype).requires_grad_()
    came = layer(half)
    assert relative_error(came, expected) < 0.1
    came.float().square().mean().backward()
    for part in (half, *layer.parameters()):
        assert part.grad is not None
        assert part.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in ALL if name != "softmax"])
def test_memory_grows_linearly(name: str) -> None:
    layer = make(name, (8, 8), torch.float32)
    totals = []
    for grid in [(32, 64), (64, 64)]:
        x = tokens(layer, grid, batch=1).requires_grad_()
        with TensorsMade() as made:
            layer(x, grid).sum().backward()
        totals.append(made.total)
        assert made.largest < x.shape[1] ** 2 / 10
    assert totals[1] / totals[0] <= 2.1


@EVERY
def test_setting_the_grid_keeps_what_the_layer_says_there(name: str) -> None:
    layer = make(name, key_encoding=True)
    x = tokens(layer, (9, 4))
    before = layer(x, (9, 4))
    layer.set_grid_size((9, 4))
    torch.testing.assert_close(layer(x), before)
    wanted = make(name, (9, 4), key_encoding=True)
    assert {key: value.shape for key, value in layer.state_dict().items()} == {
        key: value.shape for key, value in wanted.state_dict().items()
    }


@EVERY
def test_one_graph_is_compiled_and_exported(name: str) -> None:
    layer = make(name, (5, 7), torch.float32)
    x = tokens(layer, (5, 7), batch=3)
    torch._dynamo.reset()
    compiled: Any = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
        y = tokens(layer, (5, 7), batch=2)
        torch.testing.assert_close(program.module()(y), layer(y), rtol=1e-4, atol=1e-5)
