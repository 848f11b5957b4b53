from pathlib import Path

import pytest
import torch

from flatten_transformer.tasks.classification.model import build_model
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, load_model, save_model

NAME = "flatten_swin_base_patch4_224"
SIZES = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
PREPROCESSING = Preprocessing(224, 3, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    info = ModelInfo(NAME, SIZES, ("cat", "dog"), PREPROCESSING)
    save_model(tmp_path / "model.safetensors", info.build(), info)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", [NAME, "flatten_swin_base_patch4_384"])
def test_a_training_begins_with_the_weights_of_another_at_another_size_too(name: str, weights: Path) -> None:
    model = build_model(name, SIZES | {"checkpoint_path": str(weights)}, num_classes=2, in_chans=3).state_dict()
    begin = load_model(weights)[0].state_dict()
    assert model.keys() == begin.keys()
    same = [key for key in begin if begin[key].shape == model[key].shape]
    assert all(torch.equal(begin[key], model[key]) for key in same)
    assert all("positional_encoding" in key or "relative_position" in key for key in begin.keys() - same)
    assert (len(same) == len(begin)) == (name == NAME)


def test_what_a_training_began_with_is_not_needed_any_more_afterwards(weights: Path, tmp_path: Path) -> None:
    info = ModelInfo(NAME, SIZES | {"checkpoint_path": str(weights)}, ("cat", "dog"), PREPROCESSING)
    save_model(tmp_path / "tuned.safetensors", info.build(), info)
    weights.unlink()
    assert load_model(tmp_path / "tuned.safetensors")[1].class_names == ["cat", "dog"]


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights .*none to begin with: give model\.model_args\.checkpoint_path"):
        build_model(NAME, SIZES | {"checkpoint_path": str(tmp_path / "none")}, num_classes=2, in_chans=3)


def test_weights_for_other_classes_are_refused_with_the_way_to_take_them(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit .* with 3 classes .*: for other classes, .* give --model\.pretrained"):
        build_model(NAME, SIZES | {"checkpoint_path": str(weights)}, num_classes=3, in_chans=3)
    told = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    model = build_model(NAME, SIZES | told, num_classes=3, in_chans=3).state_dict()
    key = "layers.0.blocks.0.mlp.fc1.weight"
    assert torch.equal(model[key], load_model(weights)[0].state_dict()[key])
