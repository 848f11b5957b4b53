"""Any input gives success or one line: FUZZ_EXAMPLES=5000 pytest tests/fuzz knocks longer."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]  # ships no annotations
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features
from safetensors import safe_open
from safetensors.torch import save

from flatten_transformer.data.by_name import open_data_set
from flatten_transformer.data.coco import read_coco
from flatten_transformer.data.mask_folder import open_mask_folder
from flatten_transformer.data.preprocessing import decode_image, to_mode
from flatten_transformer.data.shards import open_shards
from flatten_transformer.data.voc import open_voc
from flatten_transformer.data.yolo import open_yolo
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, load_model, save_model
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.recipes import find_recipe
from tests.coco_files import content as coco
from tests.fuzz.doors import VALUES, altered, bounded, damaged, knock

FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", *(["AVIF"] if features.check("avif") else [])]


@functools.cache
def picture(format_: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010E] = 6, 72.0, "a photograph"
    options: dict[str, Any] = {"exif": exif} if format_ in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format_, **options)
    return file.getvalue()


PICTURES = [picture(format_) for format_ in FORMATS] + [picture("PNG", mode) for mode in ("P", "L", "1", "LA", "RGBA", "I;16")]


@bounded(150)
@given(damaged(st.sampled_from(PICTURES)))
def test_any_bytes_are_an_image_or_refused(content: bytes) -> None:
    images: list[Image.Image] = []
    said = knock(lambda: images.append(decode_image(io.BytesIO(content), "a.png")))
    assert images or "a.png" in said
    for image in images:
        knock(functools.partial(to_mode, image, 3))


COCO = altered(coco()).map(lambda value: json.dumps(value).encode()) | damaged(st.just(json.dumps(coco()).encode()))


@bounded(120)
@given(COCO, st.booleans())
def test_any_annotation_file_is_read_or_refused(tmp_path: Path, content: bytes, masks: bool) -> None:
    file = tmp_path / "boxes.json"
    file.write_bytes(content)
    said = knock(lambda: read_coco(file, masks=masks))
    assert not said or "boxes.json" in said


@bounded(40)
@given(
    names=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))),
    mask=damaged(st.sampled_from(PICTURES)),
)
def test_any_class_list_and_mask_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, names: bytes, mask: bytes) -> None:
    root = tmp_path_factory.mktemp("masks")
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
        for number in range(2):
            (root / kind / "train" / f"{number}.png").write_bytes(picture("PNG", "L"))
    (root / "masks" / "train" / "1.png").write_bytes(mask)
    (root / "classes.txt").write_bytes(names)

    def look() -> None:
        found = open_mask_folder(root, 255, 0.5)
        for source in found[1].values():
            for index in range(len(source)):
                source[index]

    knock(look)


YOLO = damaged(st.sampled_from([b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.9 0.1 0.5 0.9\n", b"1 0.5 0.5 1e400 nan\n"]))
NAMING = damaged(st.sampled_from([b"nc: 2\nnames: [cat, dog]\ntrain: images\nval: [images]\n", b"names: {0: cat, 1: dog}\n"]))
VOC = damaged(
    st.just(
        b"<?xml version='1.0'?><annotation><size><width>12</width><height>9</height></size><object><name>cat</name>"
        b"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>7</xmax><ymax>8</ymax></bndbox></object></annotation>"
    )
)


@bounded(60)
@given(YOLO, NAMING, st.booleans())
def test_any_text_of_labels_and_description_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, labels: bytes, naming: bytes, masks: bool
) -> None:
    root = tmp_path_factory.mktemp("yolo")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    (root / "images" / "a.png").write_bytes(picture("PNG"))
    (root / "labels" / "a.txt").write_bytes(labels)
    (root / "data.yaml").write_bytes(naming)
    said = knock(lambda: [split.read() for split in open_yolo(root, masks=masks).splits.values()])
    assert not said or "yolo" in said


@bounded(60)
@given(VOC)
def test_any_xml_of_boxes_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.mktemp("voc")
    for kind in ("JPEGImages", "Annotations"):
        (root / kind).mkdir()
    (root / "JPEGImages" / "a.png").write_bytes(picture("PNG"))
    (root / "Annotations" / "a.xml").write_bytes(content)
    said = knock(lambda: [split.read() for split in open_voc(root, masks=False).splits.values()])
    assert not said or "voc" in said


def shard(names: list[str], contents: list[bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in zip(names, contents, strict=False):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


NAMES = st.sampled_from(
    ["a.png", "a.cls", "b.png", "b.cls", "cat/c.png", "dog/d.png", "../e.png", "/f.png", "a.png", "x/.png", "c\x1b.jpg"]
)
CONTENTS = st.sampled_from([picture("PNG"), b"0", b"1", b"99999999", b"-1", b"cat", b"", b"\xff", "\u0663".encode(), b"1" * 5000])
FOLDERS = st.sampled_from(["cat", "dog", "train/cat", "Train/dog", "val/cat", "test", "runs", ".git", "cat/x"])


@bounded(80)
@given(damaged(st.builds(shard, st.lists(NAMES, max_size=6), st.lists(CONTENTS, min_size=6, max_size=6))))
def test_any_tar_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-0.tar").write_bytes(content)

    def look() -> None:
        found = open_shards(tmp_path)
        for index in range(len(found.train)):
            found.train[index]

    knock(look)


@bounded(60)
@given(st.lists(st.tuples(FOLDERS, NAMES), max_size=8))
def test_any_folder_is_a_data_set_or_refused(tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, str]]) -> None:
    root = tmp_path_factory.mktemp("images")
    for folder, name in files:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name.replace("/", "")).write_bytes(picture("PNG"))
    knock(lambda: open_data_set("folder", root, download=False, val_share=0.5, img_size=8))


SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
INFO = ModelInfo("flatten_deit_tiny_patch16_224", SIZES, ("cat", "dog"), Preprocessing(16, 1, (0.3,), (0.4,)))


@functools.cache
def model_file() -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """Return a model file, and what it is made of: tensors and description."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save_model(path, INFO.build(), INFO)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return path.read_bytes(), tensors, json.loads(file.metadata()["flatten_transformer"])


ARGUMENTS = st.sampled_from(
    ["depth", "embed_dim", "img_size", "checkpoint_path", "focusing_factor", "attention_args", "num_heads", "attn_types"]
)


@st.composite
def described(draw: st.DrawFn) -> bytes:
    """Draw a model file whose description is odd."""
    _, tensors, entry = model_file()
    odd = draw(altered(entry))
    if draw(st.booleans()) and isinstance(odd, dict) and isinstance(odd.get("model_args"), dict):
        odd["model_args"] = odd["model_args"] | draw(st.dictionaries(ARGUMENTS, VALUES, max_size=2))
    return save(tensors, {"format": "pt", "flatten_transformer": json.dumps(odd)})


@bounded(60)
@given(st.one_of(described(), damaged(st.builds(lambda: model_file()[0]))))
def test_any_model_file_is_loaded_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    said = knock(lambda: load_model(file))
    assert not said or "model.safetensors" in said


RECIPE = yaml.safe_load(find_recipe("digits/flatten_deit").read_text("utf-8"))
RECIPES = altered(RECIPE).map(lambda value: yaml.safe_dump(value).encode()) | damaged(st.just(yaml.safe_dump(RECIPE).encode()))


@bounded(12)
@given(RECIPES)
def test_any_recipe_is_understood_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    options = ["--trainer.fast_dev_run", "true", "--trainer.default_root_dir", str(tmp_path)]
    knock(lambda: TrainingCLI("fit", ["--config", str(file), *options]))
