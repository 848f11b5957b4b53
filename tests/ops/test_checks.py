"""Bad input: each a ValueError that holds what came and what was wanted."""

import re
from typing import Any

import pytest
import torch

from flatten_transformer import focused_linear_attention
from flatten_transformer.ops import focused, linear_attention

QUERY, KEY, VALUE = (2, 3, 10, 8), (2, 3, 12, 8), (2, 3, 12, 5)


def arguments(**changed: Any) -> dict[str, Any]:
    """Return good arguments but for those changed; a tuple stands for a tensor of that shape."""
    given = {"query": QUERY, "key": KEY, "value": VALUE, **changed}
    return {name: torch.rand(value) if isinstance(value, tuple) else value for name, value in given.items()}


SHAPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a query with 3 axes": ({"query": (2, 10, 8)}, ["[batch, heads, tokens, channels]", "query [2, 10, 8]"]),
    "a value with 5 axes": ({"value": (2, 3, 12, 5, 1)}, ["[batch, heads, tokens, channels]", "value [2, 3, 12, 5, 1]"]),
    "another batch": ({"query": (4, 3, 10, 8)}, ["query [4, 3, 10, 8]", "key [2, 3, 12, 8]", "agree in batch"]),
    "other heads": ({"key": (2, 4, 12, 8)}, ["query [2, 3, 10, 8]", "key [2, 4, 12, 8]", "heads"]),
    "other heads of the value": ({"value": (2, 4, 12, 5)}, ["key [2, 3, 12, 8]", "value [2, 4, 12, 5]"]),
    "fewer values than keys": ({"value": (2, 3, 11, 5)}, ["key [2, 3, 12, 8]", "value [2, 3, 11, 5]", "key tokens M"]),
    "other channels": ({"query": (2, 3, 10, 9)}, ["query [2, 3, 10, 9]", "key [2, 3, 12, 8]", "channels D"]),
    "an integer query": ({"query": torch.ones(QUERY, dtype=torch.int64)}, ["query", "torch.int64", ".float()"]),
    "an integer value": ({"value": torch.ones(VALUE, dtype=torch.uint8)}, ["value", "torch.uint8", ".float()"]),
    "a complex key": ({"key": torch.ones(KEY, dtype=torch.complex64)}, ["key", "torch.complex64"]),
    "a query of 8 bits": ({"query": torch.ones(QUERY).to(torch.float8_e4m3fn)}, ["query", "at least 16 bits", "float8"]),
    "a finer key": ({"key": torch.ones(KEY, dtype=torch.float64)}, ["key is torch.float64 and query torch.float32"]),
    "a coarser value": ({"value": torch.ones(VALUE).half()}, ["value is torch.float16 and query torch.float32"]),
    "a key elsewhere": ({"key": torch.ones(KEY, device="meta")}, ["key is on meta and query on cpu", ".to(query.device)"]),
    "a sparse value": ({"value": torch.ones(VALUE).to_sparse()}, ["value is a torch.sparse_coo tensor", ".to_dense()"]),
}
MASKS: dict[str, tuple[torch.Tensor, list[str]]] = {
    "over pairs of query and key": (
        torch.ones(2, 1, 10, 12, dtype=torch.bool),
        ["[2, 1, 10, 12]", "never forms the query × key matrix", "[2, 1, 1, 12]"],
    ),
    "over heads": (torch.ones(2, 3, 1, 12, dtype=torch.bool), ["[2, 3, 1, 12]", "[2, 1, 1, 12]"]),
    "of 2 axes": (torch.ones(2, 12, dtype=torch.bool), ["[2, 12]", "[2, 1, 1, 12]", "mask[:, None, None, :]"]),
    "of other keys": (torch.ones(2, 1, 1, 10, dtype=torch.bool), ["[2, 1, 1, 10]", "[2, 1, 1, 12]"]),
    "of another batch": (torch.ones(3, 1, 1, 12, dtype=torch.bool), ["[3, 1, 1, 12]", "[2, 1, 1, 12]"]),
    "of floats": (torch.zeros(2, 1, 1, 12), ["torch.float32", "boolean", "[2, 1, 1, 12]"]),
    "elsewhere": (torch.ones(2, 1, 1, 12, dtype=torch.bool, device="meta"), ["attn_mask is on meta"]),
}
OPTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"focusing_factor": 0.5}, ["focusing_factor", "at least 1", "0.5"]),
    ({"focusing_factor": -3}, ["focusing_factor", "-3"]),
    ({"focusing_factor": float("nan")}, ["focusing_factor", "nan"]),
    ({"focusing_factor": float("inf")}, ["focusing_factor", "inf"]),
    ({"norm": "l2"}, ["norm", "'l2'", '"joint"', '"per_head"']),
    *(
        ({"focusing_factor": power}, ["focusing_factor must be a number", "at most 65536", repr(power)])
        for power in (2.0**63, 1e19, 2**200, 65537, True, "3", None, 1j, torch.tensor(3.0))
    ),
    ({"eps": 1e-50}, ["eps must lie between 1e-30 and", "torch.float32", "1e-50"]),
    ({"eps": 1e40}, ["eps must lie between", "1e+40"]),
    ({"eps": "1e-6"}, ["eps must be positive", "'1e-6'"]),
    ({"eps": True}, ["eps must be positive", "True"]),
    *(
        ({"temperature": torch.full((3, 8), value)}, ["temperature must lie between 1e-38 and", f"from {value} to {value}"])
        for value in (0.0, -1.0, float("nan"), float("inf"), 2.0**-130)
    ),
    ({"temperature": torch.ones(3, 8, dtype=torch.int32)}, ["temperature must be floating point", "torch.int32"]),
    ({"temperature": torch.ones(3, 8, dtype=torch.float64)}, ["temperature is torch.float64", "call .float() on it"]),
    ({"temperature": torch.ones(3, 8, device="meta")}, ["temperature is on meta and query on cpu"]),
    ({"key_encoding": torch.ones(3, 12, 8, device="meta")}, ["key_encoding is on meta"]),
    ({"eps": 0}, ["eps must be positive", "got 0"]),
    ({"eps": -1e-6}, ["eps must be positive", "-1e-06"]),
    ({"eps": float("nan")}, ["eps must be positive", "nan"]),
    ({"temperature": (8,)}, ["[heads, channels] = [3, 8]", "got [8]"]),
    ({"temperature": (3, 9)}, ["[heads, channels] = [3, 8]", "got [3, 9]"]),
    ({"temperature": (1, 1, 24)}, ["[heads, channels] = [3, 8]", "got [1, 1, 24]"]),
]


def assert_raises(words: list[str], function: Any, **given: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        function(**given)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_do_not_fit_are_refused_with_all_three(name: str) -> None:
    changed, words = SHAPES[name]
    assert_raises(words, focused_linear_attention, **arguments(**changed))
    plain = arguments(**changed)
    assert_raises(words, linear_attention, q=plain["query"], k=plain["key"], v=plain["value"])


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_no_linear_attention_can_apply_are_refused(name: str) -> None:
    mask, words = MASKS[name]
    assert_raises(words, focused_linear_attention, **arguments(attn_mask=mask))
    plain = arguments()
    assert_raises(words, linear_attention, q=plain["query"], k=plain["key"], v=plain["value"], attn_mask=mask)


@pytest.mark.parametrize(("option", "words"), OPTIONS, ids=[str(option) for option, _ in OPTIONS])
def test_options_out_of_range_are_refused(option: dict[str, Any], words: list[str]) -> None:
    assert_raises(words, focused_linear_attention, **arguments(**option))


@pytest.mark.parametrize(("option", "words"), OPTIONS[:5], ids=[str(option) for option, _ in OPTIONS[:5]])
def test_the_focused_function_refuses_them_too(option: dict[str, Any], words: list[str]) -> None:
    assert_raises(words, focused, x=torch.rand(1, 2, 3, 4), **option)


def test_the_focused_function_wants_four_axes() -> None:
    assert_raises(["[batch, heads, tokens, channels]", "got [3, 4]"], focused, x=torch.rand(3, 4))


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="dropout_p"):
        focused_linear_attention(**arguments(dropout_p=0.1))


CONVOLUTIONS: list[tuple[dict[str, Any], list[str]]] = [
    *(
        ({"grid_size": grid}, ["grid_size, one to three positive sizes", repr(grid)])
        for grid in ((3, 0), (-2, -3), (0, 0), (2.0, 3.0), (True, 6), (1, 1, 1, 6), (), "23", 6)
    ),
    ({"grid_size": (2**40, 2**40)}, ["has 1208925819614629174706176 tokens, there are 6 queries"]),
    ({"grid_size": (2,)}, ["odd side for each of 1 axes"]),
    ({"conv_weight": torch.ones(4, 1, 0, 3)}, ["odd side", "[4, 1, 0, 3]"]),
    ({"conv_weight": torch.ones(4, 1, 2, 2)}, ["odd side", "[4, 1, 2, 2]"]),
    ({"conv_weight": torch.ones(4, 1, 3, 3, dtype=torch.float64)}, ["conv_weight is torch.float64"]),
    ({"conv_weight": torch.ones(4, 1, 3, 3, device="meta")}, ["conv_weight is on meta"]),
    ({"conv_bias": torch.ones(4, dtype=torch.int64)}, ["conv_bias must be floating point"]),
    ({"conv_bias": torch.ones(4, device="meta")}, ["conv_bias is on meta"]),
]


@pytest.mark.parametrize("backend", ["portable", "cpp", None])
@pytest.mark.parametrize(("option", "words"), CONVOLUTIONS, ids=[str(words[0]) for _, words in CONVOLUTIONS])
def test_convolutions_over_no_grid_are_refused_by_every_backend(
    option: dict[str, Any], words: list[str], backend: str | None
) -> None:
    query, key, value = torch.rand(3, 1, 2, 6, 4).unbind(0)
    given = {"conv_weight": torch.ones(4, 1, 3, 3), "grid_size": (2, 3), **option}
    assert_raises(words, focused_linear_attention, query=query, key=key, value=value, backend=backend, **given)


@pytest.mark.parametrize("backend", ["portable", "cpp"])
def test_options_of_any_dtype_that_the_sums_hold_are_taken(backend: str) -> None:
    query, key, value = torch.rand(3, 1, 2, 6, 4).bfloat16().unbind(0)
    weight, encoding, temperature = torch.rand(4, 1, 3, 3), torch.rand(2, 6, 4), torch.rand(2, 4) + 0.5

    def attend(dtype: torch.dtype) -> torch.Tensor:
        options = {"conv_weight": weight, "key_encoding": encoding, "temperature": temperature}
        cast: dict[str, Any] = {name: x.to(torch.float16).to(dtype) for name, x in options.items()}
        return focused_linear_attention(query, key, value, grid_size=(2, 3), backend=backend, **cast)  # type: ignore[arg-type]

    assert torch.equal(attend(torch.float16), attend(torch.float32))


def test_a_temperature_that_nobody_may_look_at_gives_nan() -> None:
    query, key, value = torch.rand(3, 1, 2, 6, 4).unbind(0)
    for value_of_it in (0.0, -1.0, float("nan")):
        bad = torch.full((2, 4), value_of_it)
        out = torch.vmap(lambda t: focused_linear_attention(query, key, value, temperature=t))(bad[None])
        assert out.isnan().all()


def test_a_refused_call_leaves_a_key_padding_mask_usable_as_the_message_says() -> None:
    kept = torch.rand(2, 12) < 0.7
    given = arguments(attn_mask=kept[:, None, None, :])
    assert focused_linear_attention(**given).shape == (2, 3, 10, 5)
