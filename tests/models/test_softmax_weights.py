"""Softmax weights as a beginning: every tensor that both models have arrives, and what does not is said."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.models.cures import LayoutError
from tests.models.families import draw, official

DEIT = "flatten_deit_tiny_patch16_224"
SMALL: dict[str, Any] = {"depth": 1, "img_size": 64}
TOKEN: dict[str, Any] = {"class_token": True, "global_pool": "token"}
PYRAMID: dict[str, Any] = {"depths": (1, 1, 1, 1)}
ADDED = ("scale", "positional_encoding", "dwc.weight", "dwc.bias")
FITTING = [
    ("vit_tiny_patch16_224", SMALL, DEIT, SMALL | TOKEN, ()),
    ("deit_tiny_patch16_224", SMALL, DEIT, SMALL | TOKEN, ()),
    ("deit_tiny_distilled_patch16_224", SMALL, DEIT, SMALL | TOKEN | {"reg_tokens": 1}, ("dist_token", "head_dist")),
    ("vit_tiny_patch16_224", SMALL | {"reg_tokens": 4}, DEIT, SMALL | TOKEN | {"reg_tokens": 4}, ()),
    ("swin_tiny_patch4_window7_224", PYRAMID, "flatten_swin_tiny_patch4_224", PYRAMID, ("relative_position_bias_table",)),
    ("pvt_v2_b0", PYRAMID, "flatten_pvt_v2_b0", PYRAMID, ("attn.sr", "attn.norm")),
]


def state_of(name: str, args: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of an untrained model, drawn so that no two are equal."""
    state: dict[str, Tensor] = timm.create_model(name, **args).state_dict()
    return {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in state.items()}


def begun(name: str, state: dict[str, Tensor], args: dict[str, Any]) -> dict[str, Tensor]:
    overlay = {"state_dict": state}
    result: dict[str, Tensor] = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args).state_dict()
    return result


@pytest.mark.parametrize(("source", "source_args", "name", "args", "others"), FITTING, ids=[str(case[:2]) for case in FITTING])
def test_a_model_begins_with_every_tensor_of_its_softmax_twin(
    source: str,
    source_args: dict[str, Any],
    name: str,
    args: dict[str, Any],
    others: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = state_of(source, source_args)
    model = begun(name, state, args)
    kept = [key for key in state if key in model]
    assert all(torch.equal(model[key], state[key]) for key in kept)
    assert all(any(other in key for other in others) for key in state.keys() - kept)
    fresh = [key for key in model.keys() - kept if key != "reg_token"]
    assert fresh
    assert all(key.endswith(ADDED) for key in fresh)
    (said,) = (record.getMessage() for record in caplog.records)
    assert f"{len(model) - len(fresh)} of {len(model)} tensors are from them" in said
    for word in (*ADDED, *(other.replace("attn.norm", "sr_norm").removeprefix("attn.") for other in others)):
        assert (word in said) == (word != "dist_token"), said


def test_a_distillation_token_becomes_a_register_token() -> None:
    state = state_of("deit_tiny_distilled_patch16_224", SMALL)
    model = begun(DEIT, state, SMALL | TOKEN | {"reg_tokens": 1})
    assert torch.equal(model["reg_token"], state["dist_token"])
    loaded = timm.create_model(DEIT, **SMALL, **TOKEN, reg_tokens=1)
    loaded.load_state_dict(state, strict=False)
    assert torch.equal(loaded.reg_token, state["dist_token"])


def test_softmax_weights_of_another_size_are_resized() -> None:
    state = state_of("vit_tiny_patch16_224", SMALL | {"img_size": 96})
    model = begun(DEIT, state, SMALL | TOKEN)
    assert torch.equal(model["pos_embed"][:, 1:], resize_grid(state["pos_embed"][:, 1:], (6, 6), (4, 4)))
    assert torch.equal(model["pos_embed"][:, :1], state["pos_embed"][:, :1])


def test_the_class_token_of_pvt_is_left_out_with_its_position(caplog: pytest.LogCaptureFixture) -> None:
    twin = draw(timm.create_model("flatten_pvt_tiny", attn_types="S", **PYRAMID))
    softmax, file = twin.state_dict(), official("pvt", twin)
    file["cls_token"] = torch.randn(1, 1, 512)
    file["pos_embed4"] = torch.cat([torch.randn(1, 1, 512), file["pos_embed4"]], dim=1)
    model = begun("flatten_pvt_tiny", file, PYRAMID)
    assert all(torch.equal(model[name], softmax[name]) for name in model.keys() & softmax.keys())
    assert {name.split("attn.")[-1] for name in model.keys() - softmax.keys()} == set(ADDED)
    assert "nothing here takes sr.weight, sr.bias, sr_norm.weight, sr_norm.bias, cls_token" in caplog.text


def test_a_spatial_reduction_is_kept_where_the_model_has_one(caplog: pytest.LogCaptureFixture) -> None:
    softmax = state_of("pvt_v2_b0", PYRAMID)
    model = begun("flatten_pvt_v2_b0", softmax, PYRAMID | {"sr_ratios": (8, 4, 2, 1)})
    assert torch.equal(model["stages.0.blocks.0.attn.sr.weight"], softmax["stages.0.blocks.0.attn.sr.weight"])
    assert torch.equal(model["stages.0.blocks.0.attn.sr_norm.weight"], softmax["stages.0.blocks.0.attn.norm.weight"])
    assert "nothing here takes" not in caplog.text


def test_the_stripes_of_cswin_become_whole_maps() -> None:
    args = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4)}
    softmax = state_of("flatten_cswin_tiny_224", args | {"attn_types": "S"})
    model = begun("flatten_cswin_tiny_224", softmax, args)
    joined = torch.cat([softmax[f"stages.0.blocks.0.attns.{branch}.get_v.weight"] for branch in range(2)])
    assert torch.equal(model["stages.0.blocks.0.attns.0.get_v.weight"], joined)
    assert all(torch.equal(model[name], softmax[name]) for name in model.keys() & softmax.keys() if "0.get_v" not in name)


MISFITS = [
    ({}, {}, "a class token and the norm before pooling, this model has no class token and the norm after", TOKEN),
    ({}, {"class_token": True}, "the norm before pooling, this model has the norm after", {"global_pool": "token"}),
    ({"reg_tokens": 4}, TOKEN, "4 register or distillation tokens, this model has no register", {"reg_tokens": 4}),
    ({"class_token": False, "global_pool": "avg"}, TOKEN, "no class token and", {"class_token": False, "global_pool": "avg"}),
    ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {}, "the norm before", {"fc_norm": False}),
    ({"class_token": False, "global_pool": "avg"}, {"fc_norm": False}, "the norm after", {"fc_norm": True}),
    (
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        TOKEN,
        "no class token, this model has a",
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ),
]


@pytest.mark.parametrize(("source", "args", "problem", "cure"), MISFITS, ids=[str(case[:2]) for case in MISFITS])
def test_other_tokens_and_pooling_are_refused_with_the_arguments_that_cure_it(
    source: dict[str, Any], args: dict[str, Any], problem: str, cure: dict[str, Any], tmp_path: Path
) -> None:
    state = state_of("vit_tiny_patch16_224", SMALL | source)
    with pytest.raises(LayoutError, match=re.escape(f"the weights have {problem}")) as refused:
        begun(DEIT, state, SMALL | args)
    assert refused.value.arguments == cure
    begun(DEIT, state, SMALL | args | cure)


@pytest.mark.parametrize("source", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_every_way_to_load_says_which_model_the_file_is_for(source: str, tmp_path: Path) -> None:
    state, path = state_of(source, SMALL), tmp_path / "vit.safetensors"
    save_file(state, path)
    cure = "class_token=True, reg_tokens=1, global_pool='token'" if "dist" in source else "class_token=True, global_pool='token'"
    ways: tuple[Callable[[], Any], ...] = (
        lambda: timm.create_model(DEIT, **SMALL).load_state_dict(state),
        lambda: timm.create_model(DEIT, **SMALL).load_state_dict(state, strict=False),
        lambda: timm.create_model(DEIT, checkpoint_path=str(path), **SMALL),
        lambda: timm.create_model(DEIT, True, None, {"file": str(path)}, **SMALL),
    )
    for load in ways:
        with pytest.raises(LayoutError, match=re.escape(f"build it by timm.create_model(…, {cure})")):
            load()


def test_a_linear_model_that_lacks_a_tensor_is_not_taken_for_softmax() -> None:
    state = state_of(DEIT, SMALL)
    del state["blocks.0.attn.dwc.weight"]
    with pytest.raises(ValueError, match=r"1 missing \(first: blocks\.0\.attn\.dwc\.weight\)"):
        begun(DEIT, state, SMALL)
