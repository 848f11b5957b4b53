"""``qkv_bias`` of every family: what a model hands on to its attention is easily lost on the way."""

import re

import pytest
import timm
import torch

import flatten_transformer  # noqa: F401  # registers the models

FAMILIES = ["deit_tiny_patch16_224", "pvt_tiny", "pvt_v2_b0", "swin_tiny_patch4_224", "cswin_tiny_224"]


@pytest.mark.parametrize("attn_types", ["L", "S"])
@pytest.mark.parametrize("family", FAMILIES)
def test_projections_have_biases_unless_they_shall_have_none(family: str, attn_types: str) -> None:
    def biases(qkv_bias: bool) -> list[str]:
        blocks = {"depth": 1} if family.startswith("deit") else {"depths": (1, 1, 1, 1)}
        with torch.device("meta"):
            model = timm.create_model(f"flatten_{family}", qkv_bias=qkv_bias, attn_types=attn_types, **blocks)
        return [name for name in model.state_dict() if re.search(r"\.(q|kv|qkv)\.bias$", name)]

    assert biases(True)
    assert not biases(False)
