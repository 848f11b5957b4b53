"""What the tests of the pyramid families (PVT, PVTv2) share: small models, official names, the authors' numbers."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from tests.parity.weights import fill, image

PARITY = Path(__file__).parents[1] / "parity"
SMALL: dict[str, Any] = {
    "depths": (1, 2, 1, 1),
    "embed_dims": (8, 16, 24, 32),
    "num_heads": (1, 2, 3, 4),
    "mlp_ratios": (2, 2, 2, 2),
    "num_classes": 5,
    "img_size": 64,
}
_OFFICIAL = (  # our names, the authors' names: PVT, then PVTv2, then both
    (r"^stages\.(\d)\.pos_embed", lambda found: f"pos_embed{int(found[1]) + 1}"),
    (r"^stages\.(\d)\.(?:patch_embed|downsample)", lambda found: f"patch_embed{int(found[1]) + 1}"),
    (r"^patch_embed\.", lambda found: "patch_embed1."),
    (r"^stages\.(\d)\.norm", lambda found: f"norm{int(found[1]) + 1}"),
    (r"mlp\.dwconv", lambda found: "mlp.dwconv.dwconv"),
    (r"^stages\.(\d)\.blocks", lambda found: f"block{int(found[1]) + 1}"),
    (r"attn\.sr_norm", lambda found: "attn.norm"),
)


def small(name: str, **kwargs: Any) -> nn.Module:
    """Return a small model, every tensor of it drawn at random, in evaluation mode."""
    model: nn.Module = timm.create_model(name, **(SMALL | kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def official(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model by the names the authors' files hold."""
    renamed = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in _OFFICIAL:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def authors(file: str) -> tuple[dict[str, Tensor], Tensor, Tensor, int]:
    """Return what the authors' code had and gave: weights, images, class scores (all float64), count of parameters."""
    data = np.load(PARITY / f"{file}.npz")
    shapes = (ast.literal_eval(shape) for shape in data["shapes"])
    weights = {str(name): torch.from_numpy(fill(name, tuple(shape))) for name, shape in zip(data["keys"], shapes, strict=True)}
    images = image(*(int(data[key]) for key in ("seed", "batch", "height", "width")))
    return weights, torch.from_numpy(images), torch.from_numpy(data["logits"]), int(data["parameters"])
