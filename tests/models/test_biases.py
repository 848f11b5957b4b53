"""``qkv_bias`` of every family: what a model hands on to its attention is easily lost on the way."""

import re

import pytest
import timm
import torch

import flatten_transformer  # noqa: F401  # registers the models
from tests.models.families import FAMILIES, FAMILY


@pytest.mark.parametrize("attn_types", ["L", "S"])
@FAMILY
def test_projections_have_biases_unless_they_shall_have_none(family: str, attn_types: str) -> None:
    def biases(qkv_bias: bool) -> list[str]:
        blocks = {"depth": 1} if family == "deit" else {"depths": (1, 1, 1, 1)}
        with torch.device("meta"):
            model = timm.create_model(FAMILIES[family].name, qkv_bias=qkv_bias, attn_types=attn_types, **blocks)
        return [name for name in model.state_dict() if re.search(r"\.(q|kv|qkv)\.bias$", name)]

    assert biases(True)
    assert not biases(False)
