"""What the tests of models share: every family in small, its layouts, and the names that its official files hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn


class Family(NamedTuple):
    """A family by its smallest model, which has seven blocks at most here."""

    name: str
    sizes: dict[str, Any]
    layouts: list[dict[str, Any]]
    official: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]] = ()  # our names, the authors' names


# a letter a block, both kinds in one stage
MIXED = {"cswin": "LS-S-SL-L", "deit": "LS", "pvt": "LSLSL", "pvt_v2": "LSLSL", "swin": "SL-LS-L-S"}
_PYRAMID: dict[str, Any] = {
    "depths": (1, 2, 1, 1),
    "embed_dims": (8, 16, 24, 32),
    "num_heads": (1, 2, 3, 4),
    "mlp_ratios": (2, 2, 2, 2),
}
_REDUCED: list[dict[str, Any]] = [
    {},
    {"sr_ratios": (8, 4, 2, 1)},
    {"sr_ratios": (8, 4, 2, 1), "stretch": "tokens"},
    {"attn_types": MIXED["pvt"]},
    {"attn_types": "S"},
]
FAMILIES = {
    "cswin": Family(
        "flatten_cswin_tiny_224",
        {"embed_dim": 8, "depths": (2, 1, 2, 1), "num_heads": (2, 2, 4, 4), "softmax_split_sizes": (1, 2, 3, 7)},
        [{}, {"split_sizes": (5, 3, 2, 1)}, {"attn_types": MIXED["cswin"]}, {"attn_types": "L"}, {"attn_types": "S"}],
        (
            (r"^stem\.conv", "stage1_conv_embed.0"),
            (r"^stem\.norm", "stage1_conv_embed.2"),
            (r"^stages\.(\d)\.downsample", r"merge\1"),
            (r"^stages\.(\d)\.blocks", lambda found: f"stage{int(found[1]) + 1}"),
            (r"^head\.fc", "head"),
        ),
    ),
    "deit": Family(
        "flatten_deit_tiny_patch16_224",
        {"embed_dim": 24, "depth": 2, "num_heads": 3},
        [{}, {"attn_types": MIXED["deit"]}, {"class_token": True, "reg_tokens": 4, "global_pool": "token"}],
    ),
    "pvt": Family(
        "flatten_pvt_tiny",
        _PYRAMID,
        _REDUCED,
        (
            (r"^stages\.(\d)\.pos_embed", lambda found: f"pos_embed{int(found[1]) + 1}"),
            (r"^stages\.(\d)\.patch_embed", lambda found: f"patch_embed{int(found[1]) + 1}"),
            (r"^stages\.(\d)\.blocks", lambda found: f"block{int(found[1]) + 1}"),
            (r"attn\.sr_norm", "attn.norm"),
        ),
    ),
    "pvt_v2": Family(
        "flatten_pvt_v2_b0",
        _PYRAMID,
        _REDUCED,
        (
            (r"^stages\.(\d)\.downsample", lambda found: f"patch_embed{int(found[1]) + 1}"),
            (r"^patch_embed\.", "patch_embed1."),
            (r"^stages\.(\d)\.norm", lambda found: f"norm{int(found[1]) + 1}"),
            (r"mlp\.dwconv", "mlp.dwconv.dwconv"),
            (r"^stages\.(\d)\.blocks", lambda found: f"block{int(found[1]) + 1}"),
            (r"attn\.sr_norm", "attn.norm"),
        ),
    ),
    "swin": Family(
        "flatten_swin_tiny_patch4_224",
        {
            "embed_dim": 16,
            "depths": (2, 2, 2, 1),
            "num_heads": (1, 2, 4, 4),
            "drop_path_rate": 0.0,
            "window_size": 6,
            "softmax_window_size": 3,
        },
        [{}, {"window_size": 56}, {"attn_types": MIXED["swin"]}, {"attn_types": "L"}, {"attn_types": "S"}],
        ((r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample"), (r"^head\.fc", "head")),
    ),
}
FAMILY = pytest.mark.parametrize("family", FAMILIES)


def layouts(*families: str) -> Any:
    """Return the mark that runs a test once a layout of these families, by default of all."""
    chosen = [(family, layout) for family in families or FAMILIES for layout in FAMILIES[family].layouts]
    return pytest.mark.parametrize(("family", "layout"), chosen, ids=str)


def by_family(table: dict[str, list[Any]], *names: str) -> Any:
    """Return the mark that runs a test once a row of each family; ``names`` are those of a row's values."""
    assert table.keys() == FAMILIES.keys(), f"rows of {list(table)}, families {list(FAMILIES)}"
    rows = [(family, *(row if len(names) > 1 else [row])) for family, of_family in table.items() for row in of_family]
    return pytest.mark.parametrize(("family", *names), rows, ids=str)


def create(family: str, **options: Any) -> Any:
    """Return a small model in evaluation mode, as it is initialised."""
    name, sizes = FAMILIES[family][:2]
    return timm.create_model(name, **({"img_size": 64, "num_classes": 5} | sizes | options)).eval()


def small(family: str, **options: Any) -> Any:
    """Return a small model in evaluation mode, every tensor of it drawn at random."""
    return draw(create(family, **options))


def draw(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module


def official(family: str, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model by the names the authors' files hold, with what else theirs hold."""
    computed = ["layers.0.blocks.1.attn_mask", "layers.3.blocks.0.attn.relative_position_index"] if family == "swin" else []
    renamed = {name: torch.zeros(1) for name in computed}
    for name, value in model.state_dict().items():
        for pattern, replacement in FAMILIES[family].official:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed
