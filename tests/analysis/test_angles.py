"""Proposition 1 of FLatten on activations: focusing draws together what has its largest entry in one place."""

from typing import Any

import pytest
import timm
import torch

from flatten_transformer.analysis import capture, measure_angles
from flatten_transformer.analysis.angles import positive_features
from flatten_transformer.analysis.capture import CapturedGrid
from flatten_transformer.ops.reference import focused_function
from tests.helpers import randomise, relative_error

TINY = {"img_size": 40, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def captured(**options: Any) -> CapturedGrid:
    model = timm.create_model("flatten_deit_tiny_patch16_224", **{**TINY, **options})
    randomise(model)
    torch.manual_seed(0)
    attention = capture(model, torch.randn(1, 3, 40, 40))[0]
    assert isinstance(attention, CapturedGrid)
    return attention


def test_most_pairs_move_as_the_proposition_has_it() -> None:
    angles = measure_angles(captured())
    assert angles is not None
    assert angles.mean_after["same"] > angles.mean_before["same"]
    assert angles.mean_after["other"] < angles.mean_before["other"]
    assert min(angles.moved_as_stated.values()) > 0.6
    assert sum(angles.pairs.values()) == 2 * 25 * 25


def test_a_larger_power_moves_them_further() -> None:
    small, large = (measure_angles(captured(focusing_factor=power)) for power in (2, 8))
    assert small is not None
    assert large is not None
    assert small.mean_before == large.mean_before
    assert small.mean_after["same"] < large.mean_after["same"]
    assert small.mean_after["other"] > large.mean_after["other"]


def test_the_shares_of_the_bins_add_up_and_have_the_mean() -> None:
    angles = measure_angles(captured())
    assert angles is not None
    for kind in ("same", "other"):
        for shares, mean in ((angles.before, angles.mean_before), (angles.after, angles.mean_after)):
            assert sum(shares[kind]) == pytest.approx(1)
            centres = [(index + 0.5) / len(shares[kind]) for index in range(len(shares[kind]))]
            assert sum(c * s for c, s in zip(centres, shares[kind], strict=True)) == pytest.approx(mean[kind], abs=0.0126)


@pytest.mark.parametrize("options", [{}, {"attention_args": {"temperature": False, "key_encoding": False}}])
def test_the_features_are_those_the_attention_focuses(options: dict[str, Any]) -> None:
    attention = captured(**options)
    q, k = (focused_function(x, 3) for x in positive_features(attention))
    products = q @ k.transpose(2, 3)
    rows = products / products.shape[3]
    assert relative_error(rows / (rows.sum(3, keepdim=True) + 1e-6), attention.decompose().matrix) < 1e-12


def test_one_head_is_a_part_of_all() -> None:
    attention = captured()
    heads = [measure_angles(attention, head) for head in (0, 1)]
    every = measure_angles(attention)
    assert every is not None
    assert sum(angles.pairs["same"] for angles in heads if angles) == every.pairs["same"]


@pytest.mark.parametrize("attention", ["relu", "softmax", "hydra"])
def test_where_nothing_is_focused_there_are_no_angles(attention: str) -> None:
    assert measure_angles(captured(attention=attention)) is None


def test_padding_is_no_pair() -> None:
    options = {"img_size": 32, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 5}
    model = timm.create_model("flatten_swin_tiny_patch4_224", **options, attn_types="LSSS")
    randomise(model)
    attention = capture(model, torch.randn(1, 3, 32, 32))[0]
    angles = measure_angles(attention)
    assert angles is not None
    assert attention.windows == 4
    assert sum(angles.pairs.values()) == 25**2 + 15**2 + 15**2 + 9**2  # of windows of 25, which a map of 8 × 8 does not fill
