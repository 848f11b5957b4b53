import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faster_coco_eval import COCO
from faster_coco_eval import mask as rle
from PIL import Image

from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.detection import predict as prediction
from flatten_transformer.tasks.detection.detector import Detector
from flatten_transformer.tasks.detection.predict import detect, predict_files
from flatten_transformer.tasks.detection.preprocessing import DetectionPreprocessing
from flatten_transformer.tasks.model_file import ModelInfo
from flatten_transformer.tasks.overlays import enlarge, readable_scale
from flatten_transformer.utils.stopping import UnfinishedError
from tests.tasks.detection.conftest import MakeDetector

INFO = ModelInfo("mask_rcnn", {}, ("cat", "dog", "bird"), DetectionPreprocessing(3, (0.5,) * 3, (0.5,) * 3), "detect")


@pytest.fixture
def model(make_detector: MakeDetector) -> Detector:
    return make_detector()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for number, (name, size) in enumerate({"a/one.jpg": (90, 60), "b/one.png": (48, 64)}.items()):
        path = tmp_path / name
        path.parent.mkdir()
        pixels = torch.rand(3, size[1], size[0], generator=torch.Generator().manual_seed(number))
        Image.fromarray((255 * pixels).byte().permute(1, 2, 0).numpy()).save(path)
        paths.append(path)
    return paths


def threshold_between(model: Detector, files: list[Path]) -> float:
    scores = [each.score for found in detect(model, INFO, files, 0.0) for each in found]
    return sorted(scores)[len(scores) // 2]


def test_what_is_found_has_a_class_a_score_a_box_and_a_mask(model: Detector, files: list[Path]) -> None:
    threshold = threshold_between(model, files)
    every, sure = detect(model, INFO, files, 0.0), detect(model, INFO, files, threshold)
    assert 0 < sum(map(len, sure)) < sum(map(len, every))
    for found, (width, height) in zip(sure, ((90, 60), (48, 64)), strict=True):
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        for each in found:
            assert each.class_name in INFO.class_names
            assert each.score >= threshold
            assert 0 <= each.box[0] < each.box[2] <= width
            assert each.mask is not None
            assert (each.mask.shape, each.mask.dtype) == ((height, width), torch.bool)


def test_an_image_may_be_open_already(model: Detector, files: list[Path]) -> None:
    with Image.open(files[1]) as image:
        found = detect(model, INFO, [image], 0.0)[0]
    assert [each.box for each in found] == [each.box for each in detect(model, INFO, files, 0.0)[1]]


def test_a_detector_of_boxes_finds_no_masks(make_detector: MakeDetector, files: list[Path], tmp_path: Path) -> None:
    model = make_detector("faster_rcnn")
    assert {each.mask for each in detect(model, INFO, files, 0.0)[0]} == {None}
    predict_files(model, INFO, files, tmp_path / "found", 0.0)
    assert "segmentation" not in json.loads((tmp_path / "found" / "detections.json").read_text())["annotations"][0]


def test_cocos_tools_read_the_file(model: Detector, files: list[Path], tmp_path: Path) -> None:
    threshold = threshold_between(model, files)
    predict_files(model, INFO, files, tmp_path / "found", threshold)
    data = COCO(tmp_path / "found" / "detections.json")
    assert [(image["file_name"], image["width"], image["height"]) for image in data.loadImgs([1, 2])] == [
        (str(files[0]), 90, 60),
        (str(files[1]), 48, 64),
    ]
    assert [category["name"] for category in data.loadCats([1, 2, 3])] == ["cat", "dog", "bird"]
    wanted = [each for found in detect(model, INFO, files, threshold) for each in found]
    entries = data.dataset["annotations"]
    assert len(entries) == len(wanted)
    for entry, each in zip(entries, wanted, strict=True):
        left, top, width, height = entry["bbox"]
        assert (left, top, left + width, top + height) == pytest.approx(each.box, abs=1e-4)
        assert (INFO.class_names[entry["category_id"] - 1], entry["score"]) == (each.class_name, each.score)
        assert each.mask is not None
        assert torch.equal(torch.from_numpy(rle.decode(entry["segmentation"])).bool(), each.mask)
    assert len(data.loadRes([dict(entry) for entry in entries]).anns) == len(entries)


def test_the_data_sets_own_category_ids_come_back(model: Detector, files: list[Path], tmp_path: Path) -> None:
    info = replace(INFO, category_ids=(7, 90, 3))
    predict_files(model, info, files, tmp_path / "own", 0.0)
    predict_files(model, INFO, files, tmp_path / "counted", 0.0)
    own, counted = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("own", "counted"))
    assert own["categories"] == [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}, {"id": 3, "name": "bird"}]
    found = [entry["category_id"] for entry in own["annotations"]]
    assert found == [(7, 90, 3)[entry["category_id"] - 1] for entry in counted["annotations"]]
    assert len(set(found)) > 1


def test_every_image_gets_a_picture_of_its_own(model: Detector, files: list[Path], tmp_path: Path) -> None:
    predict_files(model, INFO, files, tmp_path / "found", threshold_between(model, files))
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["detections.json", "one-2.png", "one.png"]
    for file, name in zip(files, ("one.png", "one-2.png"), strict=True):
        with Image.open(file) as image, Image.open(tmp_path / "found" / name) as picture:
            scale = readable_scale(image)
            assert scale > 1
            assert picture.size == (scale * image.width, scale * image.height)
            assert picture.convert("RGB").tobytes() != image.convert("RGB").tobytes()


def test_an_image_on_which_nothing_is_found_is_left_as_it_is(model: Detector, files: list[Path], tmp_path: Path) -> None:
    predict_files(model, INFO, files[1:], tmp_path / "found", 1.0)
    with Image.open(files[1]) as image, Image.open(tmp_path / "found" / "one.png") as picture:
        assert picture.tobytes() == enlarge(image, readable_scale(image)).tobytes()
    assert json.loads((tmp_path / "found" / "detections.json").read_text())["annotations"] == []


def test_no_image_is_written_over(model: Detector, files: list[Path]) -> None:
    before = files[1].read_bytes()
    with pytest.raises(ValueError, match=r"one\.png is one of the images, and its picture would take its place: choose another"):
        predict_files(model, INFO, files[1:], files[1].parent)
    assert files[1].read_bytes() == before


def test_a_threshold_out_of_range_is_refused(model: Detector, files: list[Path], tmp_path: Path) -> None:
    for call in (lambda: detect(model, INFO, files, 1.5), lambda: predict_files(model, INFO, files, tmp_path / "found", 1.5)):
        with pytest.raises(ValueError, match=r"threshold must lie in 0 … 1, got 1\.5"):
            call()


def test_a_stop_leaves_a_whole_json_of_what_was_found(
    model: Detector, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reading(path: Path) -> Image.Image:
        if path == files[1]:
            assert [image["id"] for image in COCO(tmp_path / "found" / "detections.json").dataset["images"]] == [1]
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(prediction, "read_image", reading)
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, INFO, files, tmp_path / "found", 0.0)
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [image["file_name"] for image in found["images"]] == [str(files[0])]
    assert {each["image_id"] for each in found["annotations"]} == {1}
    assert "What was found on 1 image is in" in capsys.readouterr().out


def test_an_older_json_stays_until_the_new_one_is_whole(
    model: Detector, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, part = tmp_path / "found" / "detections.json", tmp_path / "found" / "detections.json.part"
    older.parent.mkdir()
    older.write_text("older")
    content = files[1].read_bytes()
    files[1].write_text("not an image")
    with pytest.raises(ValueError, match=r"one\.png is not an image"):
        predict_files(model, INFO, files, tmp_path / "found", 0.0, on_bad_image="raise")
    assert older.read_text() == "older"
    assert len(json.loads(part.read_text())["images"]) == 1
    assert str(part) in capsys.readouterr().out.replace("\n", "")
    files[1].write_bytes(content)
    predict_files(model, INFO, files, tmp_path / "found", 0.0)
    assert len(json.loads(older.read_text())["images"]) == 2
    assert sorted(path.name for path in older.parent.glob("*.json*")) == ["detections.json", "detections.json.part"]


def test_the_others_go_on_without_a_bad_image(model: Detector, files: list[Path], tmp_path: Path) -> None:
    files[0].write_text("not an image")
    with pytest.raises(UnfinishedError, match=r"1 of 2 images skipped: .*one\.jpg is not an image"):
        predict_files(model, INFO, files, tmp_path / "found", 0.0)
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [(image["id"], image["file_name"]) for image in found["images"]] == [(2, str(files[1]))]
    assert {each["image_id"] for each in found["annotations"]} == {2}
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["detections.json", "one-2.png"]


@pytest.mark.parametrize("output", ["one.png", "detections.json"])
def test_no_output_takes_the_place_of_an_input_by_another_name(
    output: str, model: Detector, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / output).hardlink_to(files[1])
    before = files[1].read_bytes()
    with pytest.raises(ValueError, match=r"one\.png is one of the images|is read by this command"):
        predict_files(model, INFO, files, tmp_path / "found")
    assert files[1].read_bytes() == before
    assert len(list((tmp_path / "found").iterdir())) == 1
