"""A checkpoint says on which grid its encodings were learned; where it does not, what was taken for it is said."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flatten_transformer.layers import learned_grids
from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.layers.learned_grids import LearnsOnGrid
from flatten_transformer.models.fit_weights import fit_key_encodings
from flatten_transformer.models.read_weights import convert_checkpoint, read_tensors
from flatten_transformer.tasks.backbone import load_backbone

_PYRAMID: dict[str, Any] = {
    "depths": (1, 1, 1, 1),
    "embed_dims": (8, 8, 8, 8),
    "num_heads": (1, 1, 1, 1),
    "mlp_ratios": (1, 1, 1, 1),
}
_DEPTHS: dict[str, Any] = {"depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "embed_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("flatten_deit_tiny_patch16_224", {"depth": 1, "embed_dim": 12}),
    "deit with a class token": (
        "flatten_deit_tiny_patch16_224",
        {"depth": 1, "embed_dim": 12, "class_token": True, "global_pool": "token", "reg_tokens": 1},
    ),
    "pvt": ("flatten_pvt_tiny", {**_PYRAMID, "sr_ratios": (2, 1, 1, 1)}),
    "pvt_v2": ("flatten_pvt_v2_b0", _PYRAMID),
    "swin": ("flatten_swin_tiny_patch4_224", _DEPTHS),
    "cswin": ("flatten_cswin_tiny_224", _DEPTHS),
    "cswin in stripes": ("flatten_cswin_tiny_224", {**_DEPTHS, "split_sizes": 2}),
    "agent": (
        "flatten_deit_tiny_patch16_224",
        {"depth": 1, "embed_dim": 12, "attention": "agent", "attention_args": {"num_agents": 4}},
    ),
}
WIDE = (64, 256)  # 4 × 16 patches of DeiT: as many as 16 × 4 and 8 × 8


def build(kind: str, size: tuple[int, int], **options: Any) -> Any:
    name, own = MODELS[kind]
    if kind == "swin":  # offsets of 7 × 15 and 15 × 7 between the tokens of a window
        options["softmax_window_size"] = (4, 8) if size[0] < size[1] else (8, 4)
    model = timm.create_model(name, num_classes=3, img_size=size, **own, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def learned(model: nn.Module) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Return what the model has learned on a grid, and that grid."""
    state, found = model.state_dict(), {}
    for prefix, module in model.named_modules():
        if isinstance(module, LearnsOnGrid):
            for leaf, grid in module.learned_grids().items():
                name = f"{prefix}.{leaf}" if prefix else leaf
                found[name] = (state[name], tuple(grid))
    return found


def assert_resized(model: nn.Module, source: nn.Module) -> None:
    """Assert that ``model`` holds what ``source`` has learned, as seen from its own grids."""
    came = learned(source)
    assert came
    for name, (value, grid) in learned(model).items():
        tokens, old = came[name]
        first = tokens.shape[-2] - old[0] * old[1]
        tokens, value = (x if x.ndim == 3 else x[None] for x in (tokens, value))
        assert torch.equal(value[:, :first], tokens[:, :first]), name
        torch.testing.assert_close(value[:, first:], resize_grid(tokens[:, first:], old, grid), msg=name)


@pytest.fixture(scope="module", params=MODELS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("size", [(256, 64), (128, 128)])
def test_a_rectangle_fits_another_picture_by_every_way_in(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    source = build(kind, WIDE)
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    torch.save({"model": nn.ModuleDict({"module": source}).state_dict(), "epoch": 3}, tmp_path / "wrapped.pth")
    convert_checkpoint(tmp_path / "wrapped.pth", tmp_path / "converted.safetensors")
    for file in ("plain.pth", "wrapped.pth", "converted.safetensors"):
        model = build(kind, size)
        model.load_state_dict(read_tensors(tmp_path / file))
        assert_resized(model, source)
    name, own = MODELS[kind]
    options = {"softmax_window_size": (8, 4) if size[0] >= size[1] else (4, 8)} if kind == "swin" else {}
    overlays: list[dict[str, Any]] = [{"file": str(tmp_path / "wrapped.pth")}, {"state_dict": source.state_dict()}]
    for overlay in overlays:
        model = timm.create_model(name, True, None, overlay, num_classes=3, img_size=size, **own, **options)
        assert_resized(model, source)
    larger = nn.ModuleDict({"backbone": build(kind, size)})
    larger.load_state_dict(copy.deepcopy(nn.ModuleDict({"backbone": source}).state_dict()))
    assert_resized(larger["backbone"], source)


def test_no_key_is_added_and_an_old_program_reads_the_file(kind: str, tmp_path: Path) -> None:
    model = build(kind, WIDE)
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    assert set(model.state_dict()) <= names
    torch.save(model.state_dict(), tmp_path / "x.pth")
    assert set(torch.load(tmp_path / "x.pth", weights_only=True)) == set(model.state_dict())


def test_a_model_that_was_given_another_size_says_so_in_its_file(tmp_path: Path) -> None:
    source = build("deit", (64, 64))
    source.set_input_size(img_size=WIDE)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    model = build("deit", (128, 128))
    model.load_state_dict(torch.load(tmp_path / "x.pth"))
    assert_resized(model, source)


def said_once(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    return record.getMessage()


def test_own_rectangle_without_its_grid_is_resumed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model = build("deit", WIDE), build("deit", WIDE)
    save_file(source.state_dict(), tmp_path / "x.safetensors")
    learned_grids._warn_once.cache_clear()
    model.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert "64 tokens come without their grid and are taken for (4, 16)" in said_once(caplog)
    assert_resized(model, source)


def test_where_a_rectangle_may_be_a_square_a_beginning_is_refused_with_the_cure(tmp_path: Path) -> None:
    save_file(build("deit", (128, 128)).state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match=r"64 tokens, which may be \(8, 8\) or another grid.*\(4, 16\).*load_state_dict.*set_input"
    ):
        fit_key_encodings(read_tensors(tmp_path / "x.safetensors"), build("deit", WIDE))


@pytest.mark.parametrize("size", [(128, 128), (224, 224)])
def test_a_square_without_its_grid_is_taken_for_one_by_a_square_without_a_word(
    size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    source, model = build("deit", (128, 128)), build("deit", size)
    learned_grids._warn_once.cache_clear()
    model.load_state_dict(dict(source.state_dict()))
    assert_resized(model, source)
    assert not caplog.records


def test_a_square_without_its_grid_is_taken_for_one_by_a_rectangle_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    source, model = build("deit", (128, 128)), build("deit", (96, 160))
    learned_grids._warn_once.cache_clear()
    model.load_state_dict(dict(source.state_dict()))
    assert "64 tokens come without their grid and are taken for (8, 8), where the model has the grid (6, 10)" in said_once(caplog)
    assert_resized(model, source)


def test_published_weights_are_known_to_be_squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = build("pvt_v2", (128, 128))

    def download(url: str, file: str) -> None:
        torch.save({"model": dict(source.state_dict())}, file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name, own = MODELS["pvt_v2"]
    for size in (WIDE, (224, 224)):
        assert_resized(timm.create_model(name, True, num_classes=3, img_size=size, **own), source)


@pytest.mark.parametrize(
    "said", [{"pos_embed": "4x16"}, {"pos_embed": [4.0, 16.0]}, {"pos_embed": [-4, -16]}, [], "square", 7, None]
)
def test_a_file_may_say_any_nonsense_of_its_grid(said: Any) -> None:
    source, model = build("deit", (128, 128)), build("deit", (128, 128))
    state = source.state_dict()
    state._metadata[""]["grids"] = said
    model.load_state_dict(state)
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_a_backbone_knows_the_grid_of_its_classifier(tmp_path: Path) -> None:
    for kind in ("pvt", "deit"):
        source = build(kind, WIDE)
        torch.save(source.state_dict(), tmp_path / "x.pth")
        name, own = MODELS[kind]
        args = {**own, "img_size": (256, 64)}
        features = timm.create_model(name, features_only=True, out_indices=(0,), **args)
        load_backbone(features, name, args, tmp_path / "x.pth")
        came = {name.replace("model.", ""): value for name, value in features.state_dict().items()}
        encoding = next(name for name in came if name.endswith("pos_embed"))
        value, grid = next(found for name, found in learned(source).items() if name.endswith("pos_embed"))
        torch.testing.assert_close(came[encoding], resize_grid(value, grid, grid[::-1]))
