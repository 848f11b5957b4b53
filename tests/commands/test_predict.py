from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flatten_transformer.commands.predict import expand, predict
from flatten_transformer.data.digits import CLASS_NAMES, Digits
from flatten_transformer.tasks import per_image
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.detection.preprocessing import DetectionPreprocessing
from flatten_transformer.tasks.model_file import ModelInfo, save_model
from flatten_transformer.tasks.registry import TASKS, TaskName, task_spec
from flatten_transformer.tasks.segmentation.preprocessing import SegmentationPreprocessing
from flatten_transformer.utils import progress

DEIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
PVT = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 8], "num_heads": [1, 1, 1, 1], "img_size": 32}
PYRAMID: dict[str, Any] = {"backbone": "flatten_pvt_v2_b0", "backbone_args": PVT}
INFOS: dict[TaskName, ModelInfo] = {
    "classify": ModelInfo("flatten_deit_tiny_patch16_224", DEIT, CLASS_NAMES, Preprocessing(16, 1, (0.3,), (0.4,))),
    "detect": ModelInfo(
        "mask_rcnn",
        PYRAMID | {"fpn_channels": 16, "box_dim": 16, "min_size": 32},
        ("cat", "dog"),
        DetectionPreprocessing(3, (0.5,) * 3, (0.5,) * 3),
        "detect",
    ),
    "segment": ModelInfo(
        "semantic_fpn",
        PYRAMID | {"decoder_channels": 128},
        ("cat", "dog"),
        SegmentationPreprocessing(3, (0.5,) * 3, (0.5,) * 3),
        "segment",
    ),
}
WRITTEN: dict[TaskName, list[str]] = {
    "classify": [],
    "detect": ["image.png", "detections.json"],
    "segment": ["masks/image.png", "overlays/image.png", "classes.txt"],
}

SAVED = [name for name in TASKS if name != "distill"]  # whose students are classifiers


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for number, image in enumerate(Digits("test").images[:3]):
        image.save(tmp_path / f"{number}.png")
    return sorted(tmp_path.glob("*.png"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "image.jpg")
    return tmp_path / "image.jpg"


def saved(kind: TaskName, folder: Path) -> Path:
    save_model(folder / f"{kind}.safetensors", INFOS[kind].build(), INFOS[kind])
    return folder / f"{kind}.safetensors"


@pytest.mark.parametrize("kind", SAVED)
def test_the_file_of_a_model_says_what_is_done_with_it(
    kind: TaskName, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    predict([image], saved(kind, tmp_path))
    assert all((tmp_path / "predictions" / name).is_file() for name in WRITTEN[kind])
    assert ("predictions" in capsys.readouterr().out) == (kind != "classify")
    predict([image], tmp_path / f"{kind}.safetensors", task=kind)


@pytest.mark.parametrize("kind", SAVED)
def test_a_task_that_is_not_the_models_is_refused(kind: TaskName, image: Path, tmp_path: Path) -> None:
    other: TaskName = "detect" if kind != "detect" else "segment"
    with pytest.raises(ValueError, match=rf"the model in .*{kind}\.safetensors \w+ \w+: leave --task {other} out"):
        predict([image], saved(kind, tmp_path), task=other)


@pytest.mark.parametrize("kind", SAVED)
def test_options_that_do_not_belong_to_a_task_are_refused(kind: TaskName, image: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"top_k": 1, "csv": tmp_path / "x.csv", "output": tmp_path / "new", "threshold": 0.9}
    checkpoint = saved(kind, tmp_path)
    for name in set(values) - set(task_spec(kind).options):
        with pytest.raises(ValueError, match=rf"the model in .*{kind}\.safetensors \w+ \w+ and takes no --{name}: leave it out"):
            predict([image], checkpoint, **{name: values[name]})
    predict([image], checkpoint, **{name: values[name] for name in task_spec(kind).options})
    assert (tmp_path / "x.csv").exists() == (kind == "classify")
    assert (tmp_path / "new").exists() == (kind != "classify")


def test_a_folder_stands_for_all_its_images(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    moved = files[0].rename(tmp_path / "deeper" / "x.png")
    (tmp_path / "notes.txt").touch()
    assert expand([tmp_path, files[2]]) == [*files[1:], moved, files[2]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no image \(\.bmp, .*\): give it a folder of images"):
        expand([tmp_path / "empty"])


def test_a_log_tells_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_QUIET_S", 0.0)
    per_image.run_on_files([Path("a.png"), Path("b.png")], lambda file: file, lambda number, file: None)
    printed = capsys.readouterr()
    assert [line.partition(";")[0] for line in printed.err.splitlines()] == ["flatten: 1 of 2: a.png", "flatten: 2 of 2: b.png"]
    assert printed.out == ""


@pytest.mark.parametrize(("kind", "option", "name"), [("classify", "csv", "x.csv"), ("detect", "output", "detections.json")])
def test_a_start_after_one_that_did_not_finish_says_that_it_begins_anew(
    kind: TaskName, option: str, name: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = saved(kind, tmp_path)
    place: dict[str, Any] = {option: tmp_path if option == "output" else tmp_path / "link.csv"}
    (tmp_path / "link.csv").symlink_to(tmp_path / "x.csv")
    predict([image], checkpoint, **place)
    assert capsys.readouterr().err == ""
    parts = [tmp_path / f"{name}.part", tmp_path / f"{name}.2.part"]
    for part in parts:
        part.write_text("kept")
    predict([image], checkpoint, **place)
    left = f"flatten: {parts[0]}, {parts[1]}: of an earlier start that did not finish, left alone; beginning with the first image"
    assert capsys.readouterr().err == f"{left}\n"
    assert [part.read_text() for part in parts] == ["kept", "kept"]
