import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from flatten_transformer.data.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, load_model, save_model

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
INFO = ModelInfo("flatten_deit_tiny_patch16_224", SIZES, ("cat", "dog"), Preprocessing(16, 1, (0.3,), (0.4,)))


@pytest.mark.parametrize(
    "info",
    [
        INFO,
        ModelInfo(INFO.name, SIZES | {"attn_types": "S"}, ("a", "b", "ü"), Preprocessing(16, 3, (0.5,) * 3, (0.5,) * 3)),
        ModelInfo("resnet10t", {}, ("a", "b"), Preprocessing(32, 3, (0.5,) * 3, (0.5,) * 3)),
    ],
    ids=["flatten", "softmax", "resnet"],
)
def test_a_model_comes_back_as_it_was(info: ModelInfo, tmp_path: Path) -> None:
    model = info.build().eval()
    save_model(tmp_path / "model.safetensors", model, info)
    loaded, read = load_model(tmp_path / "model.safetensors")
    images = torch.randn(2, info.preprocessing.in_chans, info.preprocessing.img_size, info.preprocessing.img_size)
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
    assert not loaded.training
    assert (read.name, read.model_args, list(read.class_names)) == (info.name, info.model_args, list(info.class_names))
    assert read.preprocessing(_grey()).equal(info.preprocessing(_grey()))


def test_category_ids_come_back_and_older_files_have_none(tmp_path: Path) -> None:
    for ids in (None, (90, 7)):
        save_model(tmp_path / "model", INFO.build(), replace(INFO, category_ids=ids))
        assert load_model(tmp_path / "model")[1].category_ids == (None if ids is None else [90, 7])


def _grey() -> Any:
    from PIL import Image

    return Image.new("L", (9, 9), 77)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model file .*missing.*: check the path; `flatten fit` writes one"):
        load_model(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_of_another_format_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match=r"model (is not a safetensors file|does not say which model it holds).*: give it"):
        load_model(tmp_path / "model")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", INFO.build(), INFO)
    content = (tmp_path / "model").read_bytes()
    (tmp_path / "model").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_model(tmp_path / "model")


def test_a_file_that_does_not_say_its_model_is_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "model")
    with pytest.raises(ValueError, match="does not say which model it holds"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args": SIZES | {"depth": 2}}, r"do not fit its model flatten_deit_tiny_patch16_224 \(Missing key"),
        ({"model_args": SIZES | {"embed_dim": 32}}, r"do not fit its model .*size mismatch"),
        ({"class_names": ["a"]}, "do not fit its model .*size mismatch"),
        ({"name": "flatten_diet"}, "timm knows no model 'flatten_diet'"),
        ({"category_ids": [1]}, "the description in .* cannot be read .*category_ids must hold a whole number for each of 2"),
        ({"category_ids": [1, 1]}, "category_ids must hold"),
        ({"category_ids": [1, True]}, "category_ids must hold"),
        ({"category_ids": 7}, "the description in .* cannot be read"),
        ({"preprocessing": {}}, "the description in .* cannot be read"),
        ({"preprocessing": {"img_size": 16, "in_chans": 2, "mean": [], "std": []}}, "in_chans must be 1"),
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    entry = {
        "name": INFO.name,
        "model_args": SIZES,
        "class_names": ["cat", "dog"],
        "preprocessing": {"img_size": 16, "in_chans": 1, "mean": [0.3], "std": [0.4]},
    }
    metadata = {"flatten_transformer": json.dumps(entry | change)}
    save_file(INFO.build().state_dict(), tmp_path / "model", metadata)
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path / "model")
    assert "\n" not in str(error.value)
