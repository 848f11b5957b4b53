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
    "no keys": ({"key": (2, 3, 0, 8), "value": (2, 3, 0, 5)}, ["at least one", "key [2, 3, 0, 8]"]),
    "an integer query": ({"query": torch.ones(QUERY, dtype=torch.int64)}, ["query", "torch.int64", ".float()"]),
    "an integer value": ({"value": torch.ones(VALUE, dtype=torch.uint8)}, ["value", "torch.uint8", ".float()"]),
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
}
OPTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"focusing_factor": 0.5}, ["focusing_factor", "at least 1", "0.5"]),
    ({"focusing_factor": -3}, ["focusing_factor", "-3"]),
    ({"focusing_factor": float("nan")}, ["focusing_factor", "nan"]),
    ({"focusing_factor": float("inf")}, ["focusing_factor", "inf"]),
    ({"norm": "l2"}, ["norm", "'l2'", '"joint"', '"per_head"']),
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


def test_a_refused_call_leaves_a_key_padding_mask_usable_as_the_message_says() -> None:
    kept = torch.rand(2, 12) < 0.7
    given = arguments(attn_mask=kept[:, None, None, :])
    assert focused_linear_attention(**given).shape == (2, 3, 10, 5)
