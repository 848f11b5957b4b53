"""The picture of the README: four views of one query."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from flatten_transformer.analysis.explanation import draw_explanation, explain
from tests.helpers import randomise

TINY = {"img_size": 40, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def views(**choice: Any) -> Any:
    models = [timm.create_model("flatten_deit_tiny_patch16_224", attn_types=letter, **TINY) for letter in "LS"]
    for model in models:
        randomise(model)
    flatten, softmax = models
    return explain(flatten, softmax, torch.randn(1, 3, 40, 40), **{"query": 3, "block": -1, "head": 1, **choice})


def test_the_four_views_go_from_softmax_to_restored_rank(tmp_path: Path) -> None:
    softmax, linear, focused, restored = views()
    for view in (softmax, linear, focused):
        assert view.attention.sum() == pytest.approx(1, abs=1e-3)
    assert (softmax.rank, restored.rank) == (25, 25)
    assert max(linear.rank, focused.rank) <= 8
    assert not torch.equal(linear.attention, focused.attention)
    draw_explanation(torch.rand(40, 40), [softmax, linear, focused, restored], tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"block": 7}, "there is no block 7: choose one of 0 blocks.0.attn, 1 blocks.1.attn"),
        ({"head": 2}, "head must be 0 to 1"),
        ({"query": 25}, "query must be 0 to 24"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(choice: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views(**choice)
