import pytest
import timm
import torch
from torch import nn

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.models.cost import count_macs, count_parameters


def test_the_paper_s_formula_gives_the_macs_of_a_layer() -> None:
    """4NC² + 2NCd + NC + k²NC of the paper; the mean of the keys is a sum, not a product."""
    tokens, dim, head_dim, kernel = 14 * 14, 192, 64, 5
    layer = FocusedLinearAttention(dim, 3, (14, 14))
    expected = tokens * dim * (4 * dim + 2 * head_dim + 1 + kernel**2)
    assert count_macs(layer, (tokens, dim)) == expected


@pytest.mark.parametrize("attn_types", ["L", "S"])
def test_flatten_deit_costs_what_the_paper_says_and_softmax_products_are_seen(attn_types: str) -> None:
    with torch.device("meta"):
        model = timm.create_model("flatten_deit_tiny_patch16_224", attn_types=attn_types)
    gmacs = count_macs(model, (3, 224, 224)) / 1e9
    # softmax: 4N²C a layer less 2NCd + k²NC: 0.18 against 0.07 GMACs of attention proper
    assert round(gmacs, 2) == {"L": 1.14, "S": 1.25}[attn_types]


def test_flatten_deit_tiny_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        model = timm.create_model("flatten_deit_tiny_patch16_224")
    assert round(count_parameters(model) / 1e6, 2) == 6.19


def test_counting_leaves_the_model_in_its_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    count_macs(model, (3,))
    assert model.training
