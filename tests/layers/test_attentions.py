"""What every registered attention owes: registering one is what tests it. And the registry itself."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.layers import (
    FocusedLinearAttention,
    GridAttention,
    create_attention,
    create_attention_core,
    list_attentions,
    register_attention,
    unregister_attention,
)
from tests.helpers import TensorsMade, randomise, relative_error

ALL = list_attentions()
EVERY = pytest.mark.parametrize("name", ALL)
ELSEWHERE = pytest.mark.parametrize("name", [name for name in ALL if name != "angular"])  # which needs its own values
GRIDS = [((35,), (50,)), ((5, 7), (5, 7)), ((5, 7), (9, 4)), ((5, 7), (1, 1)), ((3, 4, 5), (4, 3, 2))]


def make(name: str, grid: tuple[int, ...] = (5, 7), dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    if name == "agent" and "num_agents" not in options:
        options["num_agents"] = 2 ** len(grid)
    layer = create_attention(name, 16, options.pop("num_heads", 2), grid, **options)
    randomise(layer)
    return layer.to(dtype).eval()


def tokens(layer: Any, grid: tuple[int, ...], batch: int = 2) -> Tensor:
    return torch.randn(batch, layer.num_prefix_tokens + torch.Size(grid).numel(), 16, dtype=layer.proj.weight.dtype)


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
    wanted = create_attention(name, 16, 2, (9, 4), key_encoding=True, **({"num_agents": 4} if name == "agent" else {}))
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


# Options ----------------------------------------------------------------------------------------------------------

SWITCHES: list[dict[str, Any]] = [
    {"key_encoding": "other"},
    {"temperature": "other"},
    {"rank_restoration": "other"},
    {"qkv_bias": False},
    {"proj_bias": False},
    {"num_heads": 4},
    {"kernel_size": 1, "rank_restoration": True},
    {"num_prefix_tokens": 2, "rank_restoration": True},
]
OWN_SWITCHES: dict[str, list[dict[str, Any]]] = {
    "agent": [{"num_agents": 1}, {"position_bias": False}],
    "polaformer": [{"alpha": 1.0}, {"gated": False}],
    "focused": [{"focusing_factor": 1.0}, {"norm": "per_head"}],
}


def has(layer: Any, option: str) -> bool:
    parts = {"key_encoding": "positional_encoding", "temperature": "scale", "rank_restoration": "dwc"}
    return getattr(layer, parts[option]) is not None or (option == "rank_restoration" and hasattr(layer, "residual"))


@EVERY
def test_every_option_changes_the_output(name: str) -> None:
    plain = make(name)
    x = tokens(plain, (5, 7))
    for given in [*SWITCHES, *OWN_SWITCHES.get(name, [])]:
        if name == "hydra" and "num_heads" in given:
            continue  # its heads are the channels
        options: dict[str, Any] = {
            option: not has(plain, option) if value == "other" else value for option, value in given.items()
        }
        switched = make(name, **options)
        state = switched.state_dict()
        shared = {key: value for key, value in plain.state_dict().items() if key in state and value.shape == state[key].shape}
        switched.load_state_dict(shared, strict=False)
        grid = (3, 11) if "num_prefix_tokens" in given else (5, 7)  # 2 + 33 tokens
        assert relative_error(switched(x, grid), plain(x)) > 1e-4, options


@pytest.mark.parametrize("name", ["elu", "agent"])
def test_stretch_changes_cross_attention_between_grids(name: str) -> None:
    layers = [make(name, context_dim=16, rank_restoration=True, stretch=stretch) for stretch in ("grid", "tokens")]
    x, context = tokens(layers[0], (9, 4)), tokens(layers[0], (5, 7))
    came, other = (layer(x, (9, 4), context=context) for layer in layers)
    assert relative_error(came, other) > 1e-3


def test_dropout_acts_in_training_alone() -> None:
    layer = make("elu", proj_drop=0.5)
    x = tokens(layer, (5, 7))
    assert torch.equal(layer(x), layer(x))
    assert 0.3 < (layer.train()(x) == 0).double().mean() < 0.7


@EVERY
def test_projections_carry_over_from_one_attention_to_another(name: str) -> None:
    state = create_attention(name, 16, 2, (5, 7)).state_dict()
    focused = FocusedLinearAttention(16, 2, (5, 7)).state_dict()
    for part in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias"):
        assert state[part].shape == focused[part].shape


@EVERY
def test_device_and_dtype_hold_for_every_parameter(name: str) -> None:
    layer = create_attention(name, 16, 2, (5, 7), num_prefix_tokens=1, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {(parameter.device.type, parameter.dtype) for parameter in layer.parameters()} == {("meta", torch.bfloat16)}


def test_what_is_focused_attention_with_switches_is_just_that() -> None:
    for name in ("focused", "relu", "enhanced"):
        assert type(create_attention(name, 16, 2, (5, 7))) is FocusedLinearAttention
    switches: dict[str, Any] = {"focusing_factor": 1, "key_encoding": False, "temperature": False}
    for name, restored in (("relu", False), ("enhanced", True)):
        switches["rank_restoration"] = restored
        layer, by_hand = make(name), FocusedLinearAttention(16, 2, (5, 7), **switches).double()
        by_hand.load_state_dict(layer.state_dict())
        x = tokens(layer, (5, 7))
        assert torch.equal(layer(x), by_hand(x))


def test_polaformer_powers_start_in_the_middle_and_stay_in_range() -> None:
    layer: Any = create_attention("polaformer", 16, 2, (5, 7), alpha=4.0)
    assert torch.equal(layer._powers(), torch.full((2, 8), 3.0))
    for power, limit in ((-100.0, 1.0), (100.0, 5.0)):
        layer.power.data.fill_(power)
        assert torch.equal(layer._powers(), torch.full((2, 8), limit))


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("agent", {"num_agents": 50}, "whole number to the power 2, such as 49, got 50"),
    ("agent", {"num_agents": 0}, "whole number to the power 2"),
    ("polaformer", {"alpha": 0}, "alpha must be positive"),
    ("inline", {"kernel_size": 4}, "kernel_size must be odd"),
    ("elu", {"kernel_size": 3}, "attention 'elu' has no convolution whose kernel_size could be 3"),
    ("hydra", {"focusing_factor": 3}, "attention 'hydra' has no option 'focusing_factor': choose one of"),
    ("agent", {"num_agent": 9}, "attention 'agent' has no option 'num_agent': did you mean num_agents"),
    ("hydro", {}, r"there is no attention 'hydro': did you mean hydra\?"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG, ids=str)
def test_wrong_options_are_refused_with_the_cure(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_attention(name, 16, 2, (5, 7), **options)


def test_polaformer_refuses_heads_with_an_odd_number_of_channels() -> None:
    with pytest.raises(ValueError, match="an even number of channels a head, got 6 / 2"):
        create_attention("polaformer", 6, 2, (5, 7))


# By hand, step by step as their papers have them, apart from the oracles -------------------------------------------


def heads_of(layer: Any, x: Tensor) -> list[Tensor]:
    """Return q, k and v, ``[B, 2, N, 8]``, of a layer without prefix tokens."""
    return [part.reshape(*part.shape[:2], 2, 8).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=2)]


def image_of(x: Tensor) -> Tensor:
    """Return ``[B, C, 5, 7]`` of heads ``[B, 2, 35, 8]``."""
    return x.transpose(1, 2).reshape(x.shape[0], 5, 7, -1).permute(0, 3, 1, 2)


def test_agent_attention_by_hand() -> None:
    layer = make("agent", num_agents=6**2)
    x = tokens(layer, (5, 7))
    q, k, v = heads_of(layer, x)
    agents = F.adaptive_avg_pool2d(image_of(q), 6).flatten(2).transpose(1, 2).reshape(2, 36, 2, 8).transpose(1, 2)
    biases = []
    for bias in (layer.query_bias, layer.key_bias):
        block = F.interpolate(bias.block.transpose(1, 2).unflatten(2, (7, 7)), size=(5, 7), mode="bilinear")
        rows, columns = (line.transpose(1, 2) for line in bias.lines)  # each [H, A, length]
        biases.append((block + rows[..., :, None] + columns[..., None, :]).flatten(2))  # [H, A, N]
    gathered = (agents @ k.mT / 8**0.5 + biases[1]).softmax(dim=3) @ v
    out = (q @ agents.mT / 8**0.5 + biases[0].mT).softmax(dim=3) @ gathered
    convolved = F.conv2d(image_of(v), layer.dwc.weight, layer.dwc.bias, padding=1, groups=16).flatten(2).mT
    torch.testing.assert_close(layer(x), layer.proj(out.transpose(1, 2).flatten(2) + convolved))


def test_inline_attention_by_hand() -> None:
    layer = make("inline")
    x = tokens(layer, (5, 7))
    q, k, v = heads_of(layer, x)
    scores = q @ k.mT / 8**0.5
    out = (scores - scores.mean(dim=3, keepdim=True) + 1) / 35 @ v
    first, _, second = layer.residual
    predicted = []
    for head in range(2):  # an MLP of each head
        mean = x.mean(dim=1)[:, 8 * head : 8 * head + 8]
        hidden = F.gelu(mean @ first.weight[8 * head : 8 * head + 8, :, 0].T + first.bias[8 * head : 8 * head + 8])
        rows = slice(72 * head, 72 * head + 72)
        predicted.append((hidden @ second.weight[rows, :, 0].T + second.bias[rows]).reshape(2, 8, 3, 3))
    kernels = torch.cat(predicted, dim=1)
    convolved = [
        F.conv2d(image[None], kernel[:, None], padding=1, groups=16)[0].flatten(1).T
        for image, kernel in zip(image_of(v), kernels, strict=True)
    ]
    torch.testing.assert_close(layer(x), layer.proj(out.transpose(1, 2).flatten(2) + torch.stack(convolved)))


def test_polaformer_attention_by_hand() -> None:
    layer = make("polaformer")
    x = tokens(layer, (5, 7))
    q, k, v = heads_of(layer, x)
    encoding, scale = (t.reshape(1, -1, 2, 8).transpose(1, 2) for t in (layer.positional_encoding, layer.scale))
    q, k = q / F.softplus(scale), (k + encoding) / F.softplus(scale)
    power = 1 + 4 * layer.power.sigmoid()
    q_plus, q_minus, k_plus, k_minus = (torch.relu(t) ** power for t in (q, -q, k, -k))
    halves = []
    for same, half in ((True, v[..., :4]), (False, v[..., 4:])):
        scores = q_plus @ (k_plus if same else k_minus).mT + q_minus @ (k_minus if same else k_plus).mT
        halves.append(scores @ half / (scores.sum(dim=3, keepdim=True) + 35e-6))
    convolved = layer.dwc(v.flatten(0, 1).mT.unflatten(2, (5, 7))).flatten(2).mT.unflatten(0, (2, 2))
    out = (torch.cat(halves, dim=3) + convolved).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), layer.proj(out * layer.g(x)))


# Your own ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def average() -> Iterator[str]:
    @register_attention("average", rank_restoration=True)
    class Average(GridAttention):
        def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Any) -> Tensor:
            return v.mean(dim=2, keepdim=True).expand_as(q)

    yield "average"
    unregister_attention("average")


def test_your_own_attention_has_all_that_the_others_have(average: str) -> None:
    assert average in list_attentions()
    layer = make(average, num_prefix_tokens=1, key_encoding=True)
    x = tokens(layer, (4, 6))
    value = layer.qkv(x)[..., 32:]
    out = value.mean(dim=1, keepdim=True).expand_as(value).clone()
    grid_values = value[:, 1:].reshape(2, 4, 6, 2, 8).permute(0, 3, 4, 1, 2).flatten(0, 1)
    out[:, 1:] += layer.dwc(grid_values).reshape(2, 16, 24).transpose(1, 2)
    torch.testing.assert_close(layer(x, (4, 6)), layer.proj(out))


def test_a_name_is_taken_once_but_a_notebook_may_run_again(average: str) -> None:
    with pytest.raises(ValueError, match="'average' is Average already: choose another name"):
        register_attention(average)(type("Other", (GridAttention,), {}))
    taken = type(create_attention_core(average, 16, 2, (5, 7)))
    assert register_attention(average)(taken) is taken


def test_a_default_of_no_option_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("GridAttention has no option focus to set a default of")):
        register_attention("nothing", focus=3)(GridAttention)
    assert "nothing" not in list_attentions()


def test_forgetting_what_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no attention 'nothing'"):
        unregister_attention("nothing")


def test_an_attention_says_what_it_lacks(average: str) -> None:
    layer = make(average)
    with pytest.raises(NotImplementedError, match=r"Average shows no matrix: write weights\(self, q, k, v, layout\)"):
        layer.decompose(tokens(layer, (5, 7)))
    base = GridAttention(16, 2, (5, 7))
    q = torch.randn(1, 35, 16)
    with pytest.raises(NotImplementedError, match=r"GridAttention must say how it attends: write mix"):
        base.attend(q, q, q, (5, 7), (5, 7))


def test_inline_kernels_come_from_the_tokens() -> None:
    core = create_attention_core("inline", 16, 2, (5, 7))
    q = torch.randn(1, 35, 16)
    with pytest.raises(ValueError, match="predicts its kernels from the tokens: pass x= to attend"):
        core.attend(q, q, q, (5, 7), (5, 7))
