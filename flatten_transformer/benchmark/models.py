"""Parameters, multiply-accumulates and published accuracy of every model."""

from __future__ import annotations

from typing import NamedTuple

import timm
import torch

from flatten_transformer.models.cost import count_macs, count_parameters

# ImageNet-1K top-1 in % as the paper reports it (arXiv 2308.00442 and its repository); not measured here.
PUBLISHED_TOP1 = {
    "flatten_deit_tiny_patch16_224": 74.1,
    "flatten_pvt_tiny": 77.8,
    "flatten_pvt_small": 81.7,
    "flatten_pvt_v2_b0": 71.1,
    "flatten_pvt_v2_b1": 79.5,
    "flatten_pvt_v2_b2": 82.5,
    "flatten_swin_tiny_patch4_224": 82.1,
    "flatten_swin_small_patch4_224": 83.5,
    "flatten_swin_base_patch4_224": 83.8,
    "flatten_swin_base_patch4_384": 85.0,
    "flatten_cswin_tiny_224": 83.1,
    "flatten_cswin_small_224": 83.8,
    "flatten_cswin_base_224": 84.5,
    "flatten_cswin_base_384": 85.5,
}


class ModelCost(NamedTuple):
    """Cost of a model at its native image size."""

    name: str
    image_size: int  # side in pixels
    parameters: int
    macs: int
    published_top1: float | None  # %
    has_weights: bool


def model_cost(name: str) -> ModelCost:
    """Return the cost of a registered model, counted on the meta device: nothing is computed.

    Example:
        >>> cost = model_cost("flatten_deit_tiny_patch16_224")
        >>> cost.parameters, round(cost.macs / 1e9, 2)
        (6190888, 1.14)
    """
    with torch.device("meta"):
        model = timm.create_model(name)
    input_size = model.pretrained_cfg["input_size"]
    return ModelCost(
        name,
        input_size[1],
        count_parameters(model),
        count_macs(model, input_size),
        PUBLISHED_TOP1.get(name),
        timm.is_model_pretrained(name),
    )
