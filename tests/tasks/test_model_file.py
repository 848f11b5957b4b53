import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from flatten_transformer.tasks.classification.predict import classify
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, load_model, save_model

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
SWIN = {"img_size": 32, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4, "attn_types": "LS-L"}
INFO = ModelInfo("flatten_deit_tiny_patch16_224", SIZES, ("cat", "dog"), Preprocessing(16, 1, (0.3,), (0.4,)))


@pytest.mark.parametrize(
    "info",
    [
        INFO,
        ModelInfo(INFO.name, SIZES | {"attn_types": "S"}, ("a", "b", "ü"), Preprocessing(16, 3, (0.5,) * 3, (0.5,) * 3)),
        ModelInfo("flatten_swin_tiny_patch4_224", SWIN, ("a", "b"), Preprocessing(32, 1, (0.3,), (0.4,))),
        ModelInfo("resnet10t", {}, ("a", "b"), Preprocessing(32, 3, (0.5,) * 3, (0.5,) * 3)),
    ],
    ids=["flatten", "softmax", "both in a stage", "resnet"],
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


PREPROCESSING = {"img_size": 16, "in_chans": 1, "mean": [0.3], "std": [0.4]}
ENTRY = {"name": INFO.name, "model_args": SIZES, "class_names": ["cat", "dog"], "preprocessing": PREPROCESSING}
MASKS = {"backbone": "resnet10t", "fpn_channels": 16, "box_dim": 16}


def described(path: Path, description: str, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """Return a file of the tensors of ``INFO``, or others, with any description."""
    save_file(tensors or INFO.build().state_dict(), path, {"flatten_transformer": description})
    return path


def refusal(path: Path) -> str:
    """Return what is said of a file in one line that names it."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        load_model(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args": SIZES | {"depth": 2}}, r"do not fit its model flatten_deit_tiny_patch16_224 \(Missing key"),
        ({"model_args": SIZES | {"embed_dim": 32}}, r"do not fit its model .*size mismatch"),
        ({"class_names": ["a"]}, "do not fit its model .*size mismatch"),
        ({"class_names": []}, "class_names must not be empty"),
        ({"class_names": "ab"}, r"class_names must be Sequence\[str\], got 'ab'"),
        ({"class_names": ["a", 1]}, r"class_names must be Sequence\[str\]"),
        ({"class_names": list(map(str, range(10**5)))}, "do not fit its model .*size mismatch"),
        ({"name": "flatten_diet"}, "timm knows no model 'flatten_diet'"),
        ({"name": "hf-hub:a/b"}, "timm knows no model"),
        ({"name": "local-dir:/tmp"}, "timm knows no model"),
        ({"name": ""}, "timm knows no model"),
        ({"name": "\x1b[2J"}, r"timm knows no model '\\x1b\[2J'"),
        ({"name": "resnet10t", "model_args": {}}, "do not fit its model resnet10t"),
        ({"name": ["a"]}, "name must be str"),
        ({"task": "fly"}, "no task 'fly'"),
        ({"task": ["detect"]}, "task must be"),
        ({"task": "segment"}, "preprocessing has no 'img_size'"),
        ({"task": "detect", "preprocessing": {"in_chans": 1, "mean": [0], "std": [1]}}, "no detector"),
        ({"category_ids": [1]}, "the description in .* cannot be read .*category_ids must hold a whole number for each of 2"),
        ({"category_ids": [1, 1]}, "category_ids must hold"),
        ({"category_ids": [1, True]}, "category_ids must be Sequence"),
        ({"category_ids": 7}, "the description in .* cannot be read"),
        ({"preprocessing": {}}, "the description in .* cannot be read"),
        ({"preprocessing": None}, "the description in .* cannot be read"),
        ({"preprocessing": PREPROCESSING | {"img_size": 10**9}}, "img_size must be at most 8192, got 1000000000"),
        ({"preprocessing": PREPROCESSING | {"crop_pct": 1e-9}}, "img_size must be at most 8192"),
        ({"preprocessing": PREPROCESSING | {"std": [0]}}, "std must be positive"),
        ({"preprocessing": PREPROCESSING | {"mean": ["0"]}}, "mean must be"),
        ({"preprocessing": {"img_size": 16, "in_chans": 2, "mean": [], "std": []}}, "in_chans must be 1"),
        ({"model_args": SIZES | {"num_heads": 0}}, "cannot be built .*ZeroDivisionError"),
        ({"model_args": SIZES | {"depth": -1}}, "cannot be built"),
        ({"model_args": SIZES | {"depth": 10**5}}, "many more tensors than the file"),
        ({"model_args": SIZES | {"depth": 10**9}}, "depth must be at most 1048576, got 1000000000"),
        ({"model_args": SIZES | {"embed_dim": 10**6}}, "would have a tensor of .* GB"),
        ({"model_args": SIZES | {"img_size": 10**6}}, "would have a tensor of .* GB|size mismatch"),
        ({"model_args": SIZES | {"embed_dim": "a"}}, "cannot be built"),
        ({"model_args": SIZES | {"embed_dim": {"a": [1]}}}, "cannot be built"),
        ({"model_args": SIZES | {"dpth": 1}}, "unexpected keyword argument 'dpth'"),
        ({"model_args": SIZES | {"__class__": "os.system"}}, "unexpected keyword argument '__class__'"),
        ({"model_args": SIZES | {"features_only": True}}, "cannot be built|do not fit"),
        ({"model_args": SIZES | {"device": "cuda"}}, "must not hold device"),
        ({"model_args": SIZES | {"num_classes": 2}}, "must not hold num_classes"),
        ({"model_args": SIZES | {"attention_args": {"focusing_factor": 10**9}}}, "focusing_factor must be at most"),
        ({"model_args": SIZES | {"attention": "none"}}, "cannot be built"),
        ({"model_args": SIZES | {"pretrained_cfg": {"x": 1}}}, "cannot be built"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_description_that_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert re.search(message, refusal(described(tmp_path / "model", json.dumps(ENTRY | change))))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (MASKS | {"backbone": 3}, r"model_args\.backbone must be str"),
        (MASKS | {"backbone": "hf-hub:a/b"}, "timm knows no backbone"),
        (MASKS | {"fpn_channels": 10**6}, "would have a tensor"),
        (MASKS | {"box_convs": 10**6}, "many more tensors|would have a tensor"),
        (MASKS | {"anchor_sizes": [1, 2]}, "anchor_sizes"),
        (MASKS | {"min_size": 10**6, "max_size": 10**6}, "min_size"),
        (MASKS | {"backbone_args": {"features_only": False}}, "do not fit resnet10t"),
        (MASKS | {"backbone_args": {"out_indices": ["a"]}}, "cannot be built|do not fit"),
        (MASKS | {"backbone_args": [1]}, "backbone_args must be dict"),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_detectors_description_that_does_not_fit_is_refused(args: dict[str, Any], message: str, tmp_path: Path) -> None:
    preprocessing = {"in_chans": 3, "mean": [0, 0, 0], "std": [1, 1, 1]}
    entry = {"name": "faster_rcnn", "model_args": args, "class_names": ["a"], "preprocessing": preprocessing, "task": "detect"}
    path = described(tmp_path / "model", json.dumps(entry), {"x": torch.zeros(3)})
    assert re.search(message, refusal(path))


@pytest.mark.parametrize("text", ["null", "[]", "3", '"x"', "[" * 5000 + "]" * 5000, "{", '{"name": NaN}', "", "{}"])
def test_a_description_of_another_shape_is_refused(text: str, tmp_path: Path) -> None:
    assert "the description in" in refusal(described(tmp_path / "model", text))


@pytest.mark.parametrize(
    "args",
    [
        {"pretrained": True},
        {"checkpoint_path": "{fifo}"},
        {"cache_dir": "{folder}", "pretrained": True},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": "{fifo}"}},
        {"pretrained": True, "pretrained_cfg_overlay": {"url": "http://{fifo}"}},
        {"pretrained": True, "pretrained_cfg_overlay": {"hf_hub_id": "a/b", "source": "hf-hub"}},
        {"pretrained": True, "pretrained_cfg": {"file": "{fifo}", "url": "file://{fifo}"}},
    ],
    ids=str,
)
def test_nothing_but_the_file_is_opened(args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")  # whoever opens it waits for ever
    args = json.loads(json.dumps(args).replace("{fifo}", str(fifo)).replace("{folder}", str(tmp_path / "cache")))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr("socket.socket.connect", lambda *_, **__: pytest.fail("the network was asked"))
    path = described(tmp_path / "model", json.dumps(ENTRY | {"model_args": SIZES | args}))
    assert load_model(path)[1].model_args == SIZES | args
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fifo", "model"]


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    """Return a safetensors file of any header."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (20 * 2**20).to_bytes(8, "little") + b"{" + b" " * (20 * 2**20),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),  # no data
        header({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)),  # overlap
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),  # a hole
        header({"a": 3}),
        header({"__metadata__": 3}),
        header({"__metadata__": {"flatten_transformer": 3}}),
    ],
)
def test_a_hostile_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    assert "is not a safetensors file" in refusal(tmp_path / "model")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        assert "is not a file" in refusal(path)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model", {"flatten_transformer": json.dumps(ENTRY)})
    assert "do not fit its model" in refusal(tmp_path / "model")


def test_tensors_of_another_kind_are_refused(tmp_path: Path) -> None:
    tensors = {name: value.to(torch.int32) for name, value in INFO.build().state_dict().items()}
    assert "is torch.int32, the model has torch.float32" in refusal(described(tmp_path / "model", json.dumps(ENTRY), tensors))


def test_half_precision_is_read_as_ever(tmp_path: Path) -> None:
    tensors = {name: value.bfloat16() for name, value in INFO.build().state_dict().items()}
    model, _ = load_model(described(tmp_path / "model", json.dumps(ENTRY), tensors))
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, tensors[name].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_said(value: float, tmp_path: Path) -> None:
    tensors = INFO.build().state_dict()
    tensors["head.bias"][1] = value
    with pytest.warns(UserWarning, match=r"1 of 2\d tensors of .*model hold NaN or infinity \(first: head\.bias\)"):
        load_model(described(tmp_path / "model", json.dumps(ENTRY), tensors))


def test_a_description_of_a_later_version_may_say_more(tmp_path: Path) -> None:
    load_model(described(tmp_path / "model", json.dumps(ENTRY | {"version": "99", "licence": ["MIT"]})))


def test_classes_may_share_a_name(tmp_path: Path) -> None:
    """ImageNet has two cranes."""
    _, info = load_model(described(tmp_path / "model", json.dumps(ENTRY | {"class_names": ["crane", "crane"]})))
    assert info.class_names == ["crane", "crane"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        (
            "flatten_swin_tiny_patch4_224",
            {"img_size": 64, "window_size": 4, "depths": (2, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1)},
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 4, "depths": (2, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1)},
        ),
        ("levit_128s", {"img_size": 64}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_computed_and_not_saved_is_there(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    info = ModelInfo(name, args, ("a", "b"), Preprocessing(64, 3, (0.5,) * 3, (0.5,) * 3))
    model = info.build().eval()
    save_model(tmp_path / "model", model, info)
    loaded, _ = load_model(tmp_path / "model")
    buffers = dict(loaded.named_buffers())
    assert buffers.keys() - loaded.state_dict().keys()  # else this tests nothing
    for key, value in model.named_buffers():
        assert torch.equal(buffers[key], value), key
        assert buffers[key].dtype == value.dtype
    for key, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(key), parameter), key


@pytest.mark.parametrize("size", [16, 64])
def test_a_model_that_cannot_see_images_of_the_described_size_says_so(size: int, tmp_path: Path) -> None:
    info = ModelInfo("vit_tiny_patch16_224", SIZES | {"img_size": 32}, ("a", "b"), Preprocessing(size, 1, (0.5,), (0.5,)))
    save_model(tmp_path / "model", info.build(), info)
    _grey().save(tmp_path / "image.png")
    with pytest.raises(ValueError, match=rf"vit_tiny_patch16_224 cannot see the image \(AssertionError: .*{size}"):
        classify(*load_model(tmp_path / "model"), [tmp_path / "image.png"])
