import json
from typing import Any, Literal

import pytest

from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.description import fits, read_fields, read_json, shown
from flatten_transformer.tasks.detection.options import RegionOptions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "the key 'a' is there twice"),
        ("NaN", "NaN is no number of JSON"),
        ("[-Infinity]", "-Infinity is no number"),
        ("1e999", "1e999 is too large a number"),
        ("9" * 19, "9999999999999999999 is too large"),
        ("9" * 100_000, "is too large a number"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
    ],
)
def test_what_json_does_not_say_once_and_finitely_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json(text)


def test_everything_else_of_json_is_read_as_python_reads_it() -> None:
    text = '{"a": [1, -2.5, 1e300, null, true, "\\u00fc"], "b": {"a": {}}, "c": 999999999999999999}'
    assert read_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        ("1", int, False),
        (1, float, True),
        (float("nan"), float, False),
        (float("inf"), float, False),
        (False, float, False),
        (True, bool, True),
        (1, bool, False),
        (None, int | None, True),
        ([], int | None, False),
        ([1, 2], tuple[int, ...], True),
        ([1, None], tuple[int, ...], False),
        ("ab", tuple[str, ...], False),
        ({"a": []}, dict[str, Any], True),
        ({1: 2}, dict[str, Any], False),
        ("x", Literal["x", "y"], True),
        (["x"], Literal["x", "y"], False),
    ],
    ids=str,
)
def test_a_value_fits_its_annotation_or_does_not(value: object, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": None}, "preprocessing.img_size must be int, got None"),
        ({"mean": "0.5"}, r"preprocessing.mean must be Sequence\[float\], got '0.5'"),
        ({"mean": [[0.5]]}, "preprocessing.mean must be"),
        ({"crop": 1}, "preprocessing has no 'crop', only img_size, in_chans, mean, std, crop_pct"),
        ({"std": [0]}, "std must be positive"),
    ],
    ids=str,
)
def test_fields_of_another_type_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    whole = {"img_size": 16, "in_chans": 1, "mean": [0.5], "std": [1]}
    assert read_fields(Preprocessing, whole, "preprocessing") == Preprocessing(16, 1, (0.5,), (1,))
    with pytest.raises(ValueError, match=message):
        read_fields(Preprocessing, whole | change, "preprocessing")


def test_missing_fields_and_inherited_ones_are_known() -> None:
    with pytest.raises(ValueError, match=r"model_args\.backbone is missing"):
        read_fields(RegionOptions, {"box_dim": 8}, "model_args")
    assert read_fields(RegionOptions, {"backbone": "resnet18", "anchor_sizes": [1, 2, 3, 4, 5]}, "model_args").box_dim == 1024
    with pytest.raises(ValueError, match="model_args must hold values by name, got 3"):
        read_fields(RegionOptions, 3, "model_args")


def test_a_value_is_shown_short() -> None:
    assert shown(list(range(1000))) == "a list of 1000"
    assert len(shown("x" * 10**6)) < 70
