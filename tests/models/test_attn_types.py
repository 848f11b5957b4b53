"""Layouts block by block: each block is what it is in a model of its kind alone, in every family; weights of other layouts."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from flatten_transformer.layers import GridAttention
from flatten_transformer.models.cost import count_macs, count_parameters
from flatten_transformer.models.cures import LayoutError
from flatten_transformer.models.options import expand_attn_types, write_attn_types
from tests.models.families import FAMILIES, FAMILY, MIXED, create, official, small

SWIN = (2, 2, 6, 2)


# The letters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "depths", "stages"),
    [
        ("S", SWIN, ("SS", "SS", "SSSSSS", "SS")),
        ("LLSS", SWIN, ("LL", "LL", "SSSSSS", "SS")),
        ("LLLSLSLSLSSL", SWIN, ("LL", "LS", "LSLSLS", "SL")),
        ("L-LS-SSSLLL-S", SWIN, ("LL", "LS", "SSSLLL", "SS")),
        ("LL-LL-SSSSSS-SS", SWIN, ("LL", "LL", "SSSSSS", "SS")),
        ("LSLS", (1, 1, 1, 1), ("L", "S", "L", "S")),  # a stage or a block: the same
        ("LS", (2, 2), ("LL", "SS")),  # a stage: the blocks of both are four
        ("LSSL", (2, 2), ("LS", "SL")),
        ("L", (3,), ("LLL",)),
        ("LSL", (3,), ("LSL",)),
    ],
)
def test_letters_are_for_all_blocks_for_stages_or_for_blocks(
    given: str, depths: tuple[int, ...], stages: tuple[str, ...]
) -> None:
    assert expand_attn_types(given, depths) == stages


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ("", "got '' (0 letters)"),
        ("LLS", "got 'LLS' (3 letters)"),
        ("LLLLLLLLLLL", "got 'LLLLLLLLLLL' (11 letters)"),  # the last stage would have one, as if for both its blocks
        ("LLLLLLLLLLLLL", "got 'LLLLLLLLLLLLL' (13 letters)"),
        ("LLsS", "got 'LLsS' (4 letters)"),
        ("L-L-LSLSL-S", "got 'L-L-LSLSL-S' (1-1-5-1 letters)"),
        ("LL-LL-SSSSSS", "got 'LL-LL-SSSSSS' (2-2-6 letters)"),
        ("LL-LL-SSSSSSSS", "got 'LL-LL-SSSSSSSS' (2-2-8 letters)"),
        ("L--S-S", "got 'L--S-S' (1-0-1-1 letters)"),
        ("LL,LS", "got 'LL,LS' (5 letters)"),
        (5, "got 5"),
        (["L", "L", "S", "S"], "got ['L', 'L', 'S', 'S']"),
    ],
)
def test_other_letters_are_refused_with_what_is_wanted(given: Any, got: str) -> None:
    stages = "one for all, one for each of 4 stages or one for each of 12 blocks"
    wanted = f'letters "L" (linear) or "S" (softmax), {stages} (2-2-6-2, where hyphens may set the stages apart), {got}'
    with pytest.raises(ValueError, match=re.escape(wanted)):
        expand_attn_types(given, SWIN)


def test_a_model_without_stages_is_asked_for_its_blocks_alone() -> None:
    with pytest.raises(ValueError, match=r"one for all or one for each of 12 blocks, got 'L-L' \(1-1 letters\)$"):
        expand_attn_types("L-L", [12])


@pytest.mark.parametrize("depths", [(2, 1), (1, 1), (3,), (2, 2)])
def test_letters_are_written_as_shortly_as_they_can_be_read(depths: tuple[int, ...]) -> None:
    for letters in product("LS", repeat=sum(depths)):
        stages = expand_attn_types("".join(letters), depths) if len(set(letters)) > 1 else expand_attn_types(letters[0], depths)
        assert expand_attn_types(write_attn_types(stages), depths) == stages


# The blocks -------------------------------------------------------------------------------------------------------


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if re.fullmatch(r"(.+\.)?blocks\.\d+", name)}


def is_linear(block: nn.Module) -> bool:
    return any(isinstance(part, GridAttention) for part in block.modules())


def letters_of(family: str) -> str:
    sizes = FAMILIES[family].sizes
    return "".join(expand_attn_types(MIXED[family], sizes.get("depths", [sizes.get("depth", 0)])))


@FAMILY
def test_each_block_is_the_block_of_a_model_of_its_kind_alone(family: str) -> None:
    mixed = small(family, attn_types=MIXED[family])
    pure = {letter: blocks_of(create(family, attn_types=letter)) for letter in "LS"}
    seen: list[tuple[str, Any, Any, Tensor]] = []
    for name, block in blocks_of(mixed).items():
        block.register_forward_hook(lambda _, *call, name=name: seen.append((name, *call)), with_kwargs=True)
    sizes = ((64, 64), (50, 71))
    with torch.no_grad():
        for size in sizes:
            mixed(torch.randn(2, 3, *size))
        letters = letters_of(family)
        assert len(seen) == len(sizes) * len(letters)
        for (name, args, options, out), letter in zip(seen, letters * len(sizes), strict=True):
            twin = pure[letter][name]
            assert is_linear(twin) == (letter == "L") == is_linear(mixed.get_submodule(name))
            twin.load_state_dict(mixed.get_submodule(name).state_dict())
            assert torch.equal(twin(*args, **options), out), name


@FAMILY
def test_a_mixture_and_its_opposite_cost_what_both_pure_models_cost(family: str) -> None:
    opposite = MIXED[family].translate(str.maketrans("LS", "SL"))
    models = [create(family, attn_types=types) for types in (MIXED[family], opposite, "L", "S")]
    macs, parameters = ([count(model) for model in models] for count in (lambda x: count_macs(x, (3, 64, 64)), count_parameters))
    assert macs[0] + macs[1] == macs[2] + macs[3]
    assert parameters[0] + parameters[1] == parameters[2] + parameters[3]
    assert min(macs[2:]) < macs[0] < max(macs[2:])


# Weights of other layouts -----------------------------------------------------------------------------------------


def from_file(family: str, file: Path, **options: Any) -> Any:
    return create(family, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **options)


@FAMILY
@pytest.mark.parametrize("source", ["S", "mixed"])
def test_blocks_that_the_file_has_as_softmax_begin_with_its_weights(
    family: str, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = MIXED[family] if source == "S" else "L"
    trained = small(family, attn_types=MIXED[family] if source == "mixed" else source)
    torch.save({"model": official(family, trained)}, tmp_path / "official.pth")
    model = from_file(family, tmp_path / "official.pth", attn_types=target)
    state, given = model.state_dict(), trained.state_dict()
    kept = [name for name in state if name in given and state[name].shape == given[name].shape and "head" not in name]
    assert all(torch.equal(state[name], given[name]) for name in kept)
    begun = [name for name, block in blocks_of(model).items() if is_linear(block) and not is_linear(trained.get_submodule(name))]
    added = state.keys() - given.keys()
    assert added
    assert {name for name in begun if any(one.startswith(f"{name}.") for one in added)} == set(begun)
    assert all(one.startswith(tuple(f"{name}." for name in begun)) for one in added)
    (said,) = (record.getMessage() for record in caplog.records)
    total = sum(isinstance(part, GridAttention) for part in model.modules())
    where = f"in {len(begun)} of {total} linear attentions (first: {begun[0]}.attn" if source == "mixed" else "these are"
    assert said.startswith(where)
    assert "weights of softmax attention" in said


@FAMILY
def test_linear_blocks_of_a_file_are_refused_as_softmax_with_the_letters_of_the_file(family: str, tmp_path: Path) -> None:
    trained = small(family, attn_types=MIXED[family], num_classes=1000)
    torch.save({"model": official(family, trained)}, tmp_path / "official.pth")
    linear = [name for name, block in blocks_of(trained).items() if is_linear(block)]
    problem = (
        rf"linear in the weights and softmax in this model \({re.escape(linear[0])}(, …)?\): build it by timm.create_model\("
    )
    with pytest.raises(LayoutError, match=problem) as refused:
        from_file(family, tmp_path / "official.pth", attn_types="S")
    fitting = from_file(family, tmp_path / "official.pth", num_classes=1000, **refused.value.arguments)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fitting(x), trained(x))


def test_published_weights_say_their_letters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = official("swin", small("swin", num_classes=1000))

    def download(url: str, file: str) -> None:
        torch.save({"model": published}, file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(LayoutError) as refused:
        create("swin", pretrained=True, cache_dir=tmp_path, attn_types="LSSS")
    assert refused.value.arguments == {"attn_types": "LLSS"}
    more = create("swin", pretrained=True, cache_dir=tmp_path, attn_types="L-L-SL-S")
    assert torch.equal(more.layers[2].blocks[1].attn.qkv.weight, published["layers.2.blocks.1.attn.qkv.weight"])


def test_a_file_of_another_size_or_design_is_not_told_letters() -> None:
    for options in ({"depths": (2, 2, 3, 1)}, {"embed_dim": 32}):
        overlay = {"state_dict": create("swin", **options).state_dict()}
        with pytest.raises(ValueError, match="not of FlattenSwinTransformer in this size"):
            create("swin", attn_types="S", pretrained=True, pretrained_cfg_overlay=overlay)
    name, one_block = "flatten_deit_tiny_patch16_224", {"depth": 1, "img_size": 64}
    normed = timm.create_model("vit_tiny_patch16_224", qk_norm=True, **one_block).state_dict()
    as_softmax = {"attn_types": "S", "class_token": True, "global_pool": "token"}
    with pytest.raises(ValueError, match=r"unexpected \(first: blocks\.0\.attn\.k_norm\.bias"):
        timm.create_model(name, True, None, {"state_dict": normed}, **one_block, **as_softmax)
    focused = timm.create_model(name, **one_block).state_dict()
    with pytest.raises(ValueError, match="not of FlattenVisionTransformer in this size"):
        timm.create_model(name, True, None, {"state_dict": focused}, **one_block, attention="hydra")  # which adds nothing
