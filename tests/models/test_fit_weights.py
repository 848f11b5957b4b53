"""Checkpoints: round trips, other sizes and class counts, wrappers, and strangers refused by name."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from flatten_transformer import FlattenVisionTransformer, FocusedLinearAttention
from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.models import fit_weights as checkpoint
from flatten_transformer.models.fit_weights import check_fit, fit_key_encodings, unwrap
from flatten_transformer.models.flatten_cswin import convert
from flatten_transformer.models.flatten_deit import checkpoint_filter_fn
from tests.helpers import randomise, relative_error

TINY = "flatten_deit_tiny_patch16_224"
KEYS = "blocks.0.attn.positional_encoding"


def make_model(seed: int = 0, **options: Any) -> Any:
    model = timm.create_model(TINY, **{"depth": 2, "num_classes": 10, **options}).eval()
    randomise(model, seed)
    return model


def smooth(model: FlattenVisionTransformer) -> None:
    """Give position and key encodings the smoothness of learned ones, so that resizing forth and back is nearly exact."""
    wave = torch.linspace(0, 3, 14)
    grid = (wave.sin()[:, None] + wave.cos()[None, :]).reshape(1, 196, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("pos_embed", "positional_encoding")):
                parameter.copy_(grid.expand_as(parameter))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_comes_back_as_it_went(tmp_path: Path) -> None:
    model, other = make_model(), make_model(seed=1)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    inputs = torch.randn(1, 3, 96, 64)
    assert relative_error(other(inputs), model(inputs)) > 1e-2
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(other(inputs), model(inputs))


def test_the_filter_leaves_a_checkpoint_of_its_own_size_alone() -> None:
    model = make_model()
    state = model.state_dict()
    assert same(checkpoint_filter_fn(state, make_model(seed=1)), state)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_training_checkpoints_are_unwrapped(wrapper: str, prefix: str) -> None:
    model = make_model()
    wrapped = {wrapper: {prefix + name: value for name, value in model.state_dict().items()}, "epoch": 299}
    assert same(checkpoint_filter_fn(wrapped, make_model(seed=1)), model.state_dict())


def test_averaged_weights_go_before_plain_ones_and_numbers_are_left_out() -> None:
    plain, averaged = torch.zeros(1), torch.ones(1)
    wrapped = {"model": {"weight": plain}, "model_ema": {"weight": averaged, "updates": 7}, "epoch": 3}
    assert unwrap(wrapped) == {"weight": averaged}


def test_weights_of_224_fit_384_and_come_back() -> None:
    small, large = make_model(), make_model(seed=1, img_size=384)
    smooth(small)
    grown = checkpoint_filter_fn(small.state_dict(), large)
    assert grown[KEYS].shape == grown["pos_embed"].shape == (1, 576, 192)
    assert torch.equal(grown[KEYS], resize_grid(small.state_dict()[KEYS], (14, 14), (24, 24)))
    large.load_state_dict(grown)
    assert large(torch.randn(1, 3, 384, 384)).isfinite().all()
    back = checkpoint_filter_fn(large.state_dict(), make_model())
    for name, value in small.state_dict().items():
        resized = name.endswith(("pos_embed", "positional_encoding"))
        assert relative_error(back[name], value) < (0.02 if resized else 1e-12), name


def test_weights_fit_a_rectangular_model() -> None:
    model = make_model(seed=1, img_size=(160, 320))
    model.load_state_dict(checkpoint_filter_fn(make_model().state_dict(), model))
    assert model.blocks[0].attn.positional_encoding.shape == (1, 200, 192)


def test_an_encoding_whose_grid_cannot_be_known_is_refused_with_the_cure() -> None:
    state = dict(make_model(img_size=(160, 320)).state_dict())  # a plain dict has no metadata
    state["pos_embed"] = make_model().state_dict()["pos_embed"]
    with pytest.raises(ValueError, match=r"positional_encoding has 200 tokens, not a square.*\(14, 14\).*set_input_size"):
        fit_key_encodings(state, make_model())


def test_fitting_the_encodings_changes_nothing_it_was_given() -> None:
    state = make_model().state_dict()
    before = {name: value.clone() for name, value in state.items()}
    fit_key_encodings(state, make_model(img_size=384))
    assert same(state, before)


@pytest.mark.parametrize("num_classes", [0, 3, 1000])
def test_another_number_of_classes_is_no_other_model(num_classes: int) -> None:
    model = make_model(num_classes=num_classes)
    fitted = checkpoint_filter_fn(make_model().state_dict(), model)
    kept = {name: value for name, value in fitted.items() if not name.startswith("head.")}
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert set(missing) <= {"head.weight", "head.bias"}
    assert not unexpected


STRANGERS: dict[str, tuple[Any, list[str]]] = {
    "linear attention of another kind": (
        lambda: timm.create_model(TINY, depth=2, attention="enhanced"),
        ["FlattenVisionTransformer", "4 missing", "blocks.0.attn.positional_encoding"],
    ),
    "a deeper vision transformer": (
        lambda: timm.create_model("vit_tiny_patch16_224", depth=3, class_token=False, global_pool="avg"),
        ["12 unexpected", "blocks.2.attn.proj.bias"],
    ),
    "another width": (
        lambda: timm.create_model("flatten_deit_small_patch16_224", depth=2),
        ["FlattenVisionTransformer", "of another shape", "[1, 196, 384]", "[1, 196, 192]"],
    ),
    "more blocks": (lambda: timm.create_model(TINY, depth=3), ["16 unexpected", "blocks.2.attn.dwc.bias"]),
    "fewer blocks": (lambda: timm.create_model(TINY, depth=1), ["16 missing", "blocks.1.attn.dwc.bias"]),
    "a convolutional network": (lambda: timm.create_model("resnet18"), ["missing", "unexpected", "model name"]),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_checkpoint_of_another_model_is_refused(stranger: str) -> None:
    make, words = STRANGERS[stranger]
    with pytest.raises(ValueError, match="this checkpoint is not of FlattenVisionTransformer") as raised:
        checkpoint_filter_fn(make().state_dict(), make_model())
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("classes", [1000, 3])
def test_official_names_are_converted_once_a_load(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(tensors: Any, model: Any) -> Any:
        calls.append(len(tensors))
        return convert(tensors, model)

    monkeypatch.setattr("flatten_transformer.models.flatten_cswin.convert", counted)
    sizes: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "img_size": 32}
    trained = timm.create_model("flatten_cswin_tiny_224", **sizes)
    torch.save({"model": trained.state_dict()}, tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth")}
    timm.create_model("flatten_cswin_tiny_224", True, None, overlay, num_classes=classes, **sizes)
    assert len(calls) == 1
    timm.create_model("flatten_cswin_tiny_224", checkpoint_path=str(tmp_path / "x.pth"), **sizes)
    assert len(calls) == 2
    filtered = checkpoint.checkpoint_filter_fn(trained.state_dict(), trained)
    for expected in (3, 4):  # what was filtered for one load is converted again by the next
        trained.load_state_dict(filtered)
        assert len(calls) == expected


def test_an_empty_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        checkpoint_filter_fn({}, make_model())


def test_a_layer_of_ones_own_model_is_fitted_too() -> None:
    model = nn.Sequential(nn.Linear(3, 32), FocusedLinearAttention(32, 2, (7, 7)))
    state = nn.Sequential(nn.Linear(3, 32), FocusedLinearAttention(32, 2, (14, 14))).state_dict()
    fitted = fit_key_encodings(state, model)
    assert fitted["1.positional_encoding"].shape == (1, 49, 32)
    check_fit(fitted, model)
    with pytest.raises(ValueError, match=r"1\.positional_encoding is \[1, 196, 32\], the model has \[1, 49, 32\]"):
        check_fit(state, model)
