"""FLatten-PVT: what the other families do not have."""

import pytest
import timm
import torch

from flatten_transformer.models.fit_weights import checkpoint_filter_fn
from tests.models.families import official, small


def test_the_softmax_twin_counts_as_pvt() -> None:
    with torch.device("meta"):
        model = timm.create_model("flatten_pvt_tiny", attn_types="SSSS", sr_ratios=(8, 4, 2, 1))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 13.2  # as PVT's paper has it


def test_a_stranger_among_the_weights_is_named() -> None:
    model = small("pvt")
    weights = official("pvt", model)
    weights["cls_token"] = torch.zeros(1, 1, 32)
    with pytest.raises(ValueError, match="1 unexpected \\(first: cls_token\\)"):
        checkpoint_filter_fn(weights, model)
    with pytest.raises(RuntimeError, match="cls_token"):
        model.load_state_dict(weights)
    assert model.load_state_dict(weights, strict=False).unexpected_keys == ["cls_token"]


def test_the_norm_that_is_never_applied_asks_for_no_gradient() -> None:
    model = small("pvt")
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == {"norm.weight", "norm.bias"}
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {"norm.weight", "norm.bias"}
