"""The layer: equal to the oracle and a plain convolution, on every grid, with every switch; and its refusals."""

import copy
import re
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.layers import FocusedLinearAttentionCore
from flatten_transformer.layers.attention.layout import Layout
from tests.helpers import TOLERANCES, TensorsMade, layer_by_the_book, output_and_gradients, randomise, relative_error


def make_layer(grid_size: tuple[int, ...] = (5, 7), dtype: torch.dtype = torch.float64, **options: Any) -> FocusedLinearAttention:
    layer = FocusedLinearAttention(**{"dim": 32, "num_heads": 2, "grid_size": grid_size, "dtype": dtype, **options})
    randomise(layer)
    return layer


def tokens(layer: FocusedLinearAttention, grid: tuple[int, ...], channels: int = 32, batch: int = 2) -> Tensor:
    count = layer.num_prefix_tokens + torch.Size(grid).numel()
    return torch.randn(batch, count, channels, dtype=layer.proj.weight.dtype)


def both_ways(layer: FocusedLinearAttention, x: Tensor, grid: tuple[int, ...], **given: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return output and gradients, of input, context and every parameter: of the layer, and by the book in float64."""
    names = [name for name, _ in layer.named_parameters()]
    inputs = {"x": x}
    if (context := given.pop("context", None)) is not None:
        inputs["context"] = context

    def by_module(*leaves: Tensor) -> Tensor:
        call = dict(zip(inputs, leaves, strict=False))
        state = dict(zip(names, leaves[len(inputs) :], strict=True))
        return torch.func.functional_call(layer, state, (call.pop("x"), grid), {**call, **given})

    def by_book(*leaves: Tensor) -> Tensor:
        call: dict[str, Any] = dict(zip(inputs, leaves, strict=False))
        state = dict(zip(names, leaves[len(inputs) :], strict=True))
        return layer_by_the_book(layer, state, call.pop("x"), grid, **call, **given)

    leaves = [*inputs.values(), *(parameter.detach() for parameter in layer.parameters())]
    upstream = torch.randn(x.shape[0], x.shape[1], layer.proj.out_features)
    came = output_and_gradients(by_module, leaves, upstream)
    wanted = output_and_gradients(by_book, [leaf.double() for leaf in leaves], upstream)
    return dict(zip(["output", *inputs, *names], zip(came, wanted, strict=True), strict=True))


def assert_by_the_book(layer: FocusedLinearAttention, x: Tensor, grid: tuple[int, ...], **given: Any) -> None:
    for name, (came, wanted) in both_ways(layer, x, grid, **given).items():
        assert relative_error(came, wanted) <= TOLERANCES[x.dtype], name


# Against the oracle -----------------------------------------------------------------------------------------------

GRIDS = [((35,), (35,)), ((35,), (50,)), ((5, 7), (5, 7)), ((5, 7), (9, 4)), ((3, 4, 5), (3, 4, 5)), ((3, 4, 5), (4, 3, 2))]
VARIANTS: dict[str, dict[str, Any]] = {
    "as released": {},
    "class and register tokens": {"num_prefix_tokens": 3},
    "no key encoding": {"key_encoding": False},
    "no temperature": {"temperature": False},
    "no rank restoration": {"rank_restoration": False},
    "no focusing": {"focusing_factor": 1},
    "a real power": {"focusing_factor": 2.5, "norm": "per_head"},
    "other kernels, no biases": {"kernel_size": 3, "qkv_bias": False, "proj_bias": False},
}


@pytest.mark.parametrize(("learned", "grid"), GRIDS, ids=str)
def test_the_layer_is_the_oracle_and_a_convolution_on_every_grid(learned: tuple[int, ...], grid: tuple[int, ...]) -> None:
    for num_prefix_tokens in (0, 2):
        layer = make_layer(learned, num_prefix_tokens=num_prefix_tokens)
        assert_by_the_book(layer, tokens(layer, grid), grid)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_and_every_gradient_are_by_the_book(variant: str, dtype: torch.dtype) -> None:
    layer = make_layer((8, 9), dtype, **VARIANTS[variant])
    assert_by_the_book(layer, tokens(layer, (8, 9), batch=3), (8, 9))


@pytest.mark.parametrize("stretch", ["grid", "tokens"])
@pytest.mark.parametrize("context_grid", [(5, 7), (4, 3), (9, 4)], ids=str)
@pytest.mark.parametrize("num_prefix_tokens", [0, 2])
def test_cross_attention_is_by_the_book(stretch: str, context_grid: tuple[int, ...], num_prefix_tokens: int) -> None:
    layer = make_layer((5, 7), context_dim=24, stretch=stretch, num_prefix_tokens=num_prefix_tokens)
    context = tokens(layer, context_grid, channels=24)
    assert_by_the_book(layer, tokens(layer, (9, 4)), (9, 4), context=context, context_grid_size=context_grid)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=40)
def test_random_grids_and_masks_are_by_the_book(height: int, width: int, prefix: int, masked: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = make_layer((5, 7), num_prefix_tokens=prefix)
    x = tokens(layer, (height, width))
    mask = (torch.rand(2, 1, 1, x.shape[1]) < 0.7) if masked else None
    wanted = layer_by_the_book(layer, dict(layer.named_parameters()), x, (height, width), attn_mask=mask)
    assert relative_error(layer(x, (height, width), attn_mask=mask), wanted) <= TOLERANCES[torch.float64]


def test_the_layer_is_the_released_code_step_by_step() -> None:
    """The released lines of attention.md with their own names, apart from the oracle and the other helpers."""
    layer = make_layer((5, 7), temperature=True)
    x = torch.randn(2, 35, 32, dtype=torch.float64)
    q, k, v = layer.qkv(x).reshape(2, 35, 3, 32).unbind(2)
    k = k + layer.positional_encoding
    q, k = torch.relu(q) + 1e-6, torch.relu(k) + 1e-6
    assert layer.scale is not None
    scale = torch.nn.Softplus()(layer.scale)
    q, k = q / scale, k / scale
    q_norm, k_norm = q.norm(dim=-1, keepdim=True), k.norm(dim=-1, keepdim=True)
    q, k = q**3, k**3
    q = q / q.norm(dim=-1, keepdim=True) * q_norm
    k = k / k.norm(dim=-1, keepdim=True) * k_norm
    q, k, v = (t.reshape(2, 35, 2, 16).permute(0, 2, 1, 3) for t in (q, k, v))
    z = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + 1e-6)
    out = q @ ((k.transpose(-2, -1) * 35**-0.5) @ (v * 35**-0.5)) * z
    out = out.transpose(1, 2).reshape(2, 35, 32)
    image = v.reshape(4, 35, 16).transpose(1, 2).reshape(4, 16, 5, 7)
    assert layer.dwc is not None
    restored = layer.dwc(image).reshape(2, 2, 16, 35).permute(0, 3, 1, 2).reshape(2, 35, 32)
    assert relative_error(layer(x), layer.proj(out + restored)) < 1e-12


# Grids ------------------------------------------------------------------------------------------------------------


def test_the_key_encoding_is_untouched_at_its_own_grid_whatever_ran_before() -> None:
    layer = make_layer((5, 7), torch.float32)
    x = tokens(layer, (5, 7))
    first = layer(x)
    for grid in [(9, 4), (1, 1), (20, 31)]:
        layer(tokens(layer, grid), grid)
    encoding = layer.key_encoding((5, 7))
    assert encoding is not None
    assert torch.equal(encoding.transpose(0, 1).reshape(1, 35, 32), layer.positional_encoding)  # type: ignore[arg-type]
    assert torch.equal(layer(x), first)


def test_a_grid_may_be_a_list_or_a_size() -> None:
    layer = make_layer((5, 7))
    x = tokens(layer, (9, 4))
    wanted = layer(x, (9, 4))
    for grid in ([9, 4], torch.Size([9, 4])):
        assert torch.equal(layer(x, grid), wanted)
    own = tokens(layer, (5, 7))
    assert torch.equal(layer(own, [5, 7]), layer(own))


def test_set_grid_size_resizes_the_encoding_for_good() -> None:
    layer = make_layer((5, 7))
    x = tokens(layer, (9, 4))
    before = layer(x, (9, 4))
    layer.set_grid_size((9, 4))
    assert layer.grid_size == (9, 4)
    assert layer.positional_encoding is not None
    assert layer.positional_encoding.shape == (1, 36, 32)
    assert layer.positional_encoding.requires_grad
    torch.testing.assert_close(layer(x), before)


def test_set_grid_size_keeps_a_frozen_encoding_frozen() -> None:
    layer = make_layer((5, 7)).requires_grad_(False)
    layer.set_grid_size((9, 4))
    assert layer.positional_encoding is not None
    assert not layer.positional_encoding.requires_grad


def test_set_grid_size_works_without_an_encoding() -> None:
    layer = make_layer((5, 7), key_encoding=False)
    layer.set_grid_size((9, 4))
    assert layer(tokens(layer, (9, 4))).shape == (2, 36, 32)


@pytest.mark.parametrize("grid", [(14,), (14, 14, 14, 14), 14, (0, 14), (14, -14)], ids=str)
def test_set_grid_size_refuses_what_is_no_grid_and_leaves_the_layer_as_it_was(grid: Any) -> None:
    layer = make_layer((5, 7))
    with pytest.raises(ValueError, match="grid_size"):
        layer.set_grid_size(grid)
    assert layer.grid_size == (5, 7)
    assert layer(tokens(layer, (5, 7))).shape == (2, 35, 32)


# Prefix tokens and masks ------------------------------------------------------------------------------------------


def test_prefix_tokens_attend_but_pass_by_the_convolution() -> None:
    layer = make_layer((5, 7), num_prefix_tokens=2)
    x = tokens(layer, (5, 7))
    without = make_layer((5, 7), num_prefix_tokens=2, rank_restoration=False)
    without.load_state_dict({name: value for name, value in layer.state_dict().items() if not name.startswith("dwc")})
    difference = layer(x) - without(x)
    assert difference[:, :2].abs().max() < 1e-14
    assert difference[:, 2:].abs().min() > 0
    louder = x.clone()
    louder[:, :2] *= 3
    assert (layer(louder)[:, 2:] - layer(x)[:, 2:]).abs().max() > 1e-3
    torch.testing.assert_close(layer(louder)[:, 2:] - without(louder)[:, 2:], difference[:, 2:])


def test_a_masked_sequence_is_the_shorter_sequence() -> None:
    layer = make_layer((20,), key_encoding=False)
    x = tokens(layer, (20,))
    kept = torch.arange(20) < 13
    masked = layer(x, attn_mask=kept[None, None, None, :])
    assert relative_error(masked[:, :13], layer(x[:, :13], (13,))) <= TOLERANCES[torch.float64]


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e6])
def test_what_lies_in_masked_tokens_of_a_context_never_matters(garbage: float) -> None:
    layer = make_layer((5, 7), context_dim=24)
    x, context = tokens(layer, (9, 4)), tokens(layer, (5, 7), channels=24)
    kept = torch.rand(2, 1, 1, 35) < 0.6
    dirty = context.masked_fill(~kept[:, 0, 0, :, None], garbage)
    clean = layer(x, (9, 4), context=context, attn_mask=kept)
    assert torch.equal(layer(x, (9, 4), context=dirty, attn_mask=kept), clean)


# Switches ---------------------------------------------------------------------------------------------------------

SWITCHES: list[dict[str, Any]] = [
    {"temperature": False},
    {"key_encoding": False},
    {"rank_restoration": False},
    {"focusing_factor": 1.0},
    {"focusing_factor": 4},
    {"norm": "per_head"},
    {"kernel_size": 3},
    {"num_prefix_tokens": 2},
    {"qkv_bias": False},
    {"proj_bias": False},
    {"proj_drop": 0.5},
    {"num_heads": 4},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
@pytest.mark.parametrize("context_dim", [None, 24], ids=["self", "cross"])
def test_every_switch_changes_the_output(switch: dict[str, Any], context_dim: int | None) -> None:
    plain, switched = (make_layer((5, 7), context_dim=context_dim, **options) for options in ({}, switch))
    grid = (3, 11) if switch.get("num_prefix_tokens") else (5, 7)  # 2 + 33 tokens
    state = {name: value for name, value in plain.state_dict().items() if name in switched.state_dict()}
    for name in [name for name, value in state.items() if value.shape != switched.state_dict()[name].shape]:
        del state[name]
    switched.load_state_dict(state, strict=False)
    x = torch.randn(2, 35, 32, dtype=torch.float64)
    given: dict[str, Any] = {}
    if context_dim:
        given["context"] = torch.randn(2, 35, 24, dtype=torch.float64)
    came = switched(x, grid, **given, **({"context_grid_size": grid} if context_dim else {}))
    assert relative_error(came, plain(x, **given)) > 1e-3


def test_stretch_changes_cross_attention_between_grids() -> None:
    outputs = []
    for stretch in ("grid", "tokens"):
        torch.manual_seed(0)
        layer = make_layer((5, 7), context_dim=24, stretch=stretch)
        x, context = tokens(layer, (9, 4)), tokens(layer, (5, 7), channels=24)
        outputs.append(layer(x, (9, 4), context=context))
    assert relative_error(outputs[0], outputs[1]) > 1e-3


def test_dropout_acts_in_training_alone() -> None:
    layer = make_layer((5, 7), proj_drop=0.5)
    x = tokens(layer, (5, 7))
    assert 0.3 < (layer(x) == 0).double().mean() < 0.7
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("context_dim", [None, 24], ids=["self", "cross"])
def test_device_and_dtype_hold_for_every_parameter(context_dim: int | None) -> None:
    layer = FocusedLinearAttention(32, 2, (5, 7), context_dim=context_dim, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}


# Parameters -------------------------------------------------------------------------------------------------------

OF_THE_CORE = {"scale": [1, 1, 32], "positional_encoding": [1, 35, 32], "dwc.weight": [16, 1, 5, 5], "dwc.bias": [16]}
PROJ = {"proj.weight": [32, 32], "proj.bias": [32]}


def test_parameters_have_the_names_and_shapes_of_the_official_checkpoints() -> None:
    layer = FocusedLinearAttention(dim=32, num_heads=2, grid_size=(5, 7))
    shapes = {name: list(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {**OF_THE_CORE, **PROJ, "qkv.weight": [96, 32], "qkv.bias": [96]}


def test_parameters_of_cross_attention_have_them_too() -> None:
    layer = FocusedLinearAttention(dim=32, num_heads=2, grid_size=(5, 7), context_dim=24)
    shapes = {name: list(value.shape) for name, value in layer.state_dict().items()}
    projections = {"q.weight": [32, 32], "q.bias": [32], "kv.weight": [64, 24], "kv.bias": [64]}
    assert shapes == {**OF_THE_CORE, **PROJ, **projections}


def test_the_core_has_no_projections() -> None:
    layer = FocusedLinearAttentionCore(dim=32, num_heads=2, grid_size=(5, 7))
    assert {name: list(value.shape) for name, value in layer.state_dict().items()} == OF_THE_CORE


def test_switched_off_parts_have_no_parameters() -> None:
    layer = FocusedLinearAttention(
        32, 2, (5, 7), qkv_bias=False, proj_bias=False, temperature=False, key_encoding=False, rank_restoration=False
    )
    assert set(layer.state_dict()) == {"qkv.weight", "proj.weight"}


def test_scale_and_key_encoding_start_at_zero_and_projections_small() -> None:
    layer = FocusedLinearAttention(dim=64, num_heads=2, grid_size=(5, 7))
    state = layer.state_dict()
    assert state["scale"].abs().max() == 0
    assert state["positional_encoding"].abs().max() == 0
    assert state["qkv.bias"].abs().max() == state["proj.bias"].abs().max() == 0
    assert 0.018 < state["qkv.weight"].std() < 0.022
    assert 0.018 < state["proj.weight"].std() < 0.022


def test_the_representation_shows_what_no_submodule_shows() -> None:
    layer = FocusedLinearAttention(32, 2, (5, 7), focusing_factor=4, num_prefix_tokens=1, norm="per_head")
    for part in ("num_heads=2", "grid_size=(5, 7)", "focusing_factor=4", "num_prefix_tokens=1", "norm='per_head'"):
        assert part in repr(layer)


# Precision --------------------------------------------------------------------------------------------------------


def test_autocast_stays_near_float32_and_keeps_its_sums() -> None:
    layer = make_layer((5, 7), torch.float32)
    x = tokens(layer, (5, 7))
    layer.backend = "portable"  # whose products can be seen
    widths = []

    class Products(TensorsMade):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.bmm.default:
                widths.append({args[0].dtype, args[1].dtype})
            return super().__torch_dispatch__(func, types, args, kwargs)

    with torch.autocast("cpu", torch.bfloat16), Products():
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert widths
    assert all(dtypes == {torch.float32} for dtypes in widths), widths  # qkv and proj are mm, the attention bmm
    assert relative_error(out, layer(x)) < 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", [(5, 7), (9, 4)], ids=str)
def test_half_precision_layers_are_finite_and_near_the_book(dtype: torch.dtype, grid: tuple[int, int]) -> None:
    layer = make_layer((5, 7), torch.float32).to(dtype)
    x = tokens(layer, grid)
    wanted = layer_by_the_book(layer, {name: p.double() for name, p in layer.named_parameters()}, x.double(), grid)
    out = layer(x, grid)
    assert out.dtype == dtype
    assert relative_error(out, wanted) < 2e-2
    out.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [-20.0, 0.0, 80.0])
def test_extreme_scales_stay_finite(scale: float, dtype: torch.dtype) -> None:
    layer = make_layer((5, 7), torch.float32)
    torch.nn.init.constant_(layer.scale, scale)  # type: ignore[arg-type]
    layer = layer.to(dtype)  # softplus(-20) is 0 in float16: the temperature is taken in float32
    temperature = layer.temperature()
    assert temperature is not None
    assert temperature.dtype == torch.float32
    assert temperature.min() > 0
    out = layer(tokens(layer, (5, 7)))
    assert out.isfinite().all()
    out.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_copy_of_the_layer_computes_the_same() -> None:
    layer = make_layer((5, 7))
    x = tokens(layer, (5, 7))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_without_encoding_and_convolution_the_order_of_the_context_does_not_matter() -> None:
    layer = make_layer((35,), context_dim=24, key_encoding=False, rank_restoration=False)
    x, context = tokens(layer, (35,)), tokens(layer, (35,), channels=24)
    order = torch.randperm(35)
    assert relative_error(layer(x, context=context[:, order]), layer(x, context=context)) < 1e-12


# Refusals ---------------------------------------------------------------------------------------------------------

CONSTRUCTION: list[tuple[dict[str, Any], list[str]]] = [
    ({"dim": 30, "num_heads": 4}, ["dim must be a multiple of num_heads", "30", "4"]),
    ({"num_heads": 0}, ["num_heads", "0"]),
    ({"dim": 0}, ["dim", "0"]),
    ({"grid_size": 14}, ["grid_size must hold one to three positive sizes", "14"]),
    ({"grid_size": ()}, ["grid_size must hold one to three positive sizes", "()"]),
    ({"grid_size": (2, 2, 2, 2)}, ["grid_size must hold one to three positive sizes", "(2, 2, 2, 2)"]),
    ({"grid_size": (5, 0)}, ["grid_size must hold one to three positive sizes", "(5, 0)"]),
    ({"kernel_size": 4}, ["kernel_size must be odd", "4"]),
    ({"kernel_size": -1}, ["kernel_size must be odd", "-1"]),
    ({"num_prefix_tokens": -1}, ["num_prefix_tokens must be at least 0", "-1"]),
    ({"focusing_factor": 0.5}, ["focusing_factor", "0.5"]),
    ({"focusing_factor": float("nan")}, ["focusing_factor", "nan"]),
    ({"norm": "l2"}, ["norm", "'l2'"]),
    ({"stretch": "rows"}, ["stretch", '"grid"', '"tokens"', "'rows'"]),
]


def assert_raises(words: list[str], function: Any, *args: Any, **given: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        function(*args, **given)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(("options", "words"), CONSTRUCTION, ids=[str(options) for options, _ in CONSTRUCTION])
def test_options_out_of_range_are_refused_at_construction(options: dict[str, Any], words: list[str]) -> None:
    assert_raises(words, FocusedLinearAttention, **{"dim": 32, "num_heads": 2, "grid_size": (5, 7), **options})


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="attn_drop"):
        FocusedLinearAttention(32, 2, (5, 7), attn_drop=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="mask"):
        make_layer()(torch.randn(2, 35, 32, dtype=torch.float64), mask=None)


CALLS: list[tuple[tuple[int, ...], Any, list[str]]] = [
    ((2, 35, 31), None, ["x must be [batch, tokens, 32]", "[2, 35, 31]"]),
    ((35, 32), None, ["x must be [batch, tokens, 32]", "[35, 32]"]),
    ((2, 32, 5, 7), None, ["x must be [batch, tokens, 32]", "[2, 32, 5, 7]"]),
    ((2, 36, 32), None, ["36 tokens", "(5, 7)", "35", "grid_size=(height, width)"]),
    ((2, 35, 32), (6, 6), ["35 tokens", "(6, 6)", "36"]),
    ((2, 35, 32), (35,), ["2 axes", "(5, 7)", "(35,)"]),
    ((2, 35, 32), (5, 7, 1), ["2 axes", "(5, 7)", "(5, 7, 1)"]),
    ((2, 35, 32), 35, ["grid_size", "35"]),
    ((2, 35, 32), (-5, -7), ["grid_size", "(-5, -7)"]),
    ((2, 0, 32), (0, 7), ["grid_size", "(0, 7)"]),
]


@pytest.mark.parametrize(("shape", "grid", "words"), CALLS, ids=[f"{shape} on {grid}" for shape, grid, _ in CALLS])
def test_tokens_that_do_not_fit_the_grid_are_refused(shape: tuple[int, ...], grid: Any, words: list[str]) -> None:
    assert_raises(words, make_layer((5, 7)), torch.randn(shape, dtype=torch.float64), grid)


def test_prefix_tokens_are_counted_in_the_message() -> None:
    layer = make_layer((5, 7), num_prefix_tokens=2)
    assert_raises(["35 tokens", "2 prefix tokens", "(5, 7)", "37"], layer, torch.randn(2, 35, 32, dtype=torch.float64))


def test_a_context_is_refused_by_self_attention_and_missed_by_cross_attention() -> None:
    x, context = torch.randn(2, 35, 32, dtype=torch.float64), torch.randn(2, 35, 24, dtype=torch.float64)
    itself, cross = make_layer(), make_layer(context_dim=24)
    assert_raises(["attends to x itself", "context_dim"], itself, x, context=context)
    assert_raises(["attends to x itself", "context_dim"], itself, x, context_grid_size=(5, 7))
    assert_raises(["context_dim=24", "pass context="], cross, x)
    assert_raises(["context must be [batch, tokens, 24]", "[2, 35, 32]"], cross, x, context=x)
    assert_raises(["context has 35 tokens", "(3, 3)", "9"], cross, x, context=context, context_grid_size=(3, 3))


def test_masks_over_pairs_are_refused_by_the_layer_too() -> None:
    mask = torch.ones(2, 1, 35, 35, dtype=torch.bool)
    assert_raises(
        ["never forms the query × key matrix", "[2, 1, 35, 35]", "[2, 1, 1, 35]"],
        make_layer(),
        torch.randn(2, 35, 32, dtype=torch.float64),
        attn_mask=mask,
    )


def test_attend_is_the_layer_between_its_projections() -> None:
    layer = make_layer((5, 7))
    x = tokens(layer, (5, 7))
    query, key, value = F.linear(x, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=2)
    attended = layer.attend(query, key, value, Layout((5, 7), (5, 7)))
    assert torch.equal(layer.proj(attended), layer(x))


@pytest.mark.parametrize("context_grid", [(9, 4), (5, 7)], ids=str)
def test_the_op_is_told_the_backend_and_convolves_where_keys_lie_under_queries(
    context_grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, told = import_module("flatten_transformer.layers.attention.focused"), {}
    op = module.focused_linear_attention
    monkeypatch.setattr(module, "focused_linear_attention", lambda *args, **given: told.update(given) or op(*args, **given))
    layer = make_layer((5, 7), context_dim=24, backend="portable")
    layer(tokens(layer, (9, 4)), (9, 4), context=tokens(layer, context_grid, channels=24), context_grid_size=context_grid)
    assert told["backend"] == "portable"
    assert layer.dwc is not None
    assert told["conv_weight"] is (layer.dwc.weight if context_grid == (9, 4) else None)
