import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flatten_transformer.data.reading import BadImageError
from flatten_transformer.data.scenes import draw_scene
from flatten_transformer.tasks.detection.data import CocoData
from tests.coco_files import annotation, content, objects, write_coco
from tests.scenes import few_scenes


def opened(root: Path, stage: str = "fit", **options: Any) -> CocoData:
    data = CocoData(root, **{"sizes": (48,), "max_size": 64, "batch_size": 4, **options})
    data.setup(stage)
    return data


def samples(data: CocoData) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return the images of the training set, in order, with what is on them."""
    dataset = data.train_dataloader().dataset
    return [dataset[index][:2] for index in range(len(dataset))]  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def test_a_batch_holds_images_of_many_sizes(root: Path) -> None:
    data = opened(root)
    images, targets, numbers = next(iter(data.train_dataloader()))
    assert sorted(numbers.tolist()) == [0, 1, 2, 3]
    assert sorted(tuple(image.shape) for image in images) == [(3, 48, 64)] * 3 + [(3, 64, 48)]
    assert (data.num_classes, data.in_chans, data.class_names) == (3, 3, ["car", "cat", "toothbrush"])
    for image, target in zip(images, targets, strict=True):
        assert target["masks"].shape == (len(target["boxes"]), *image.shape[1:])
        assert target["boxes"].shape == (len(target["labels"]), 4)
    assert data.names((images, targets, torch.tensor([2]))) == [str(root / "train2017" / "2.png")]


@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_boxes_and_masks_move_with_the_image(root: Path, hflip: float) -> None:
    for _, target in samples(opened(root, sizes=(96,), max_size=200, hflip=hflip)):
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.nonzero().T
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (found - box).abs().max() <= 1.5  # of 96 pixels: masks have whole ones
    first = samples(opened(root, sizes=(96,), max_size=200, hflip=hflip))[0][1]["boxes"][0].tolist()
    assert first == ([8.0, 12.0, 48.0, 60.0] if hflip == 0 else [80.0, 12.0, 120.0, 60.0])


def test_sizes_are_drawn_and_the_longer_side_is_bounded(root: Path) -> None:
    data = opened(root, sizes=(32, 96), max_size=100)
    seen = {tuple(samples(data)[0][0].shape[1:]) for _ in range(12)}
    assert seen == {(32, 42), (75, 100)}


def test_an_image_is_resized_as_a_detector_resizes_it(root: Path) -> None:
    resized = samples(opened(root, sizes=(24,), hflip=0.0))[0][0]
    whole = samples(opened(root, sizes=(48,), hflip=0.0))[0][0]
    wanted = torch.nn.functional.interpolate(whole[None], size=(24, 32), mode="bilinear")[0]
    # a value of 255 apart: 1 / 255 / 0.224; anti-aliased, 73 of them
    torch.testing.assert_close(resized, wanted, rtol=0, atol=0.018)


def test_values_are_normalised(root: Path) -> None:
    image = Image.new("RGB", (64, 48), (255, 0, 51))
    image.save(root / "train2017" / "0.png")
    pixels = samples(opened(root, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.1)))[0][0]
    torch.testing.assert_close(pixels.mean((1, 2)), torch.tensor([1.0, -2.0, -3.0]))
    grey = opened(root, in_chans=1)
    assert samples(grey)[0][0].shape[0] == grey.in_chans == 1


def test_images_without_objects_are_learned_from_unless_they_are_not_wanted(root: Path) -> None:
    assert [len(target["boxes"]) for _, target in samples(opened(root))] == [2, 1, 1, 0]
    data = opened(root, empty_images=False)
    assert [len(target["boxes"]) for _, target in samples(data)] == [2, 1, 1]
    assert len(data.val_dataloader().dataset) == 4  # type: ignore[arg-type]


def test_without_masks_there_are_none(root: Path) -> None:
    assert "masks" not in samples(opened(root, masks=False))[0][1]


def test_what_is_left_out_is_named_with_its_reason(root: Path) -> None:
    Image.new("RGB", (8, 8)).save(root / "val2017" / "loose.png")
    data = opened(root)
    crowds = [f"{root}/annotations/instances_{split}2017.json: annotation 5" for split in ("train", "val")]
    assert [(reason, list(names)) for reason, names in data.left_out] == [
        ("crowds", crowds[:1]),
        ("crowds", crowds[1:]),
        ("images that no annotation file lists", [str(root / "val2017" / "loose.png")]),
    ]


def test_images_of_another_split_in_the_same_folder_are_not_left_out(root: Path, tmp_path: Path) -> None:
    lists = {}
    for name, images in (("train", content()["images"][:3]), ("val", content()["images"][1:])):
        lists[name] = tmp_path / f"{name}.json"
        entries = [each for each in objects() if each["image_id"] in {image["id"] for image in images}]
        lists[name].write_text(json.dumps(content(images=images, annotations=entries)))
    places: dict[str, Any] = {f"{name}_annotations": path for name, path in lists.items()} | {"val_images": root / "train2017"}
    assert "images that no annotation file lists" not in dict(opened(root, **places).left_out)


def test_images_are_judged_as_they_came(root: Path) -> None:
    images, targets, _ = next(iter(opened(root, "validate").val_dataloader()))
    assert [tuple(image.shape[1:]) for image in images] == [(48, 64), (64, 48), (60, 80), (48, 64)]
    assert [target["image_id"].item() for target in targets] == [100, 101, 102, 103]
    assert not any("masks" in target for target in targets)  # the evaluation reads those of the file


def test_the_places_can_be_named_one_by_one(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content(images=content()["images"][:2], annotations=content()["annotations"][:3])))
    places: dict[str, Any] = {"train_images": root / "train2017", "train_annotations": file}
    data = opened(root, **places, test_images=root / "train2017", test_annotations=file)
    data.setup("test")
    assert (len(samples(data)), len(data.val_dataloader().dataset), len(data.test_dataloader().dataset)) == (2, 4, 2)  # type: ignore[arg-type]
    assert data.truth("test").path == file


def test_without_test_images_those_to_choose_by_are_judged(root: Path) -> None:
    data = opened(root, "test")
    assert data.truth("test").path == root / "annotations" / "instances_val2017.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "where are the train images? Set data.root, or data.train_images and data.train_annotations"),
        ({"sizes": ()}, "sizes must hold one or more from 1 to max_size"),
        ({"sizes": (900,), "max_size": 800}, "sizes must hold one or more from 1 to max_size, got [900] and max_size 800"),
        ({"hflip": 2.0}, "hflip must lie in 0 … 1"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be raise or skip"),
        ({"test_images": "x"}, "test_images and test_annotations belong together"),
        ({"mean": (0.5,)}, "mean must hold one number for each of in_chans=3 channels"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        CocoData(**{"root": root, **options})


def test_files_with_other_categories_do_not_go_together(root: Path) -> None:
    renamed = [{"id": 3, "name": "lorry"}, *[each for each in content()["categories"] if each["id"] != 3]]
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content(categories=renamed)))
    with pytest.raises(ValueError, match=r"train2017\.json has category 3, 'lorry', which .*val2017\.json lacks"):
        opened(root)


def test_a_folder_that_is_missing_is_named(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent for the images of .*train2017\.json"):
        opened(root, train_images=root / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, "holds no object (annotations: none)"),
        ({"annotations": [annotation(1, 100, 3, (1, 1, 9, 9), iscrowd=1)]}, "holds no object (annotations: 1 crowds)"),
        ({"annotations": [annotation(1, 100, 3, (25, 25, -9, -9))]}, "(annotations: 1 boxes without area in their image)"),
        ({"annotations": [annotation(1, 100, 3, (1, 1, 9, 9), segmentation=[[1, 1]])]}, "(annotations: 1 masks without area)"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("empty_images", [True, False])
def test_a_file_of_which_nothing_is_left_is_refused(
    change: dict[str, Any], message: str, split: str, empty_images: bool, root: Path
) -> None:
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content(**change)))
    with pytest.raises(ValueError, match=rf"instances_{split}2017\.json.*{re.escape(message)}"):
        opened(root, empty_images=empty_images)


@pytest.mark.parametrize("name", ["../secret.png", "{folder}/secret.png", "a/../../secret.png", "..", ".", "../train2017x/a.png"])
def test_a_file_name_may_not_leave_the_folder(name: str, root: Path) -> None:
    Image.new("RGB", (64, 48)).save(root / "secret.png")
    images = [{**content()["images"][0], "file_name": name.format(folder=root)}, *content()["images"][1:]]
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content(images=images)))
    with pytest.raises(
        ValueError, match=r"train2017\.json: image 100 has the file_name .* leaves the folder of images .*train2017"
    ):
        opened(root)


@pytest.mark.parametrize("name", ["./0.png", "../train2017/0.png", "{folder}/train2017/0.png"])
def test_a_file_name_may_be_written_in_any_way_that_stays_there(name: str, root: Path) -> None:
    images = [{**content()["images"][0], "file_name": name.format(folder=root)}, *content()["images"][1:]]
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content(images=images)))
    data = opened(root)
    assert samples(data)[0][1]["image_id"] == 100
    assert "images that no annotation file lists" not in dict(data.left_out)


def test_a_link_that_leads_out_is_followed_where_that_is_allowed(root: Path, tmp_path: Path) -> None:
    (root / "train2017" / "0.png").rename(tmp_path / "elsewhere.png")
    (root / "train2017" / "0.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(BadImageError, match=r"0\.png leads out of its data set, to .*elsewhere\.png.*data\.outside_links true"):
        samples(opened(root))
    assert len(samples(opened(root, outside_links=True))) == 4
    (root / "more").mkdir()
    (tmp_path / "elsewhere.png").rename(root / "more" / "0.png")
    (root / "train2017" / "0.png").unlink()
    (root / "train2017" / "0.png").symlink_to("../more/0.png")  # within data.root
    assert len(samples(opened(root))) == 4


def test_the_folder_of_images_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (root / "train2017").rename(tmp_path / "elsewhere")
    (root / "train2017").symlink_to(tmp_path / "elsewhere")
    assert len(samples(opened(root))) == 4


def test_a_pipe_is_never_opened(root: Path) -> None:
    (root / "train2017" / "0.png").unlink()
    os.mkfifo(root / "train2017" / "0.png")
    with pytest.raises(BadImageError, match=r"0\.png is a pipe or a device"):
        samples(opened(root))


def broken(root: Path, how: str) -> str:
    path = root / "train2017" / "1.png"
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(b"no image")
    else:
        Image.new("RGB", (7, 9)).save(path)
    return str(path)


def test_missing_images_are_not_taken_from_another_folder(root: Path) -> None:
    shutil.copytree(root / "val2017", root / "copies")
    (root / "train2017" / "1.png").unlink()
    assert opened(root).names((None, None, torch.tensor([0]))) == [str(root / "train2017" / "0.png")]
    for name in ("2.png", "3.png"):
        (root / "train2017" / name).unlink()
    shutil.rmtree(root / "copies")
    data = opened(root)
    assert data.names((None, None, torch.tensor([0]))) == [str(root / "train2017" / "0.png")]


@pytest.mark.parametrize("how", ["missing", "damaged", "another size"])
def test_an_image_that_cannot_be_used_stops_the_training_with_its_name(root: Path, how: str) -> None:
    path = broken(root, how)
    with pytest.raises(BadImageError, match=rf"{re.escape(path)}.*--data\.on_bad_image skip"):
        samples(opened(root))


def test_another_takes_its_place_where_it_is_to_be_skipped(root: Path) -> None:
    path = broken(root, "another size")
    data = opened(root, on_bad_image="skip")
    assert [target["image_id"].item() for _, target in samples(data)] == [100, 102, 102, 103]
    assert data.skipped("train") == [path]


def test_workers_give_the_same(root: Path) -> None:
    data = opened(root, num_workers=1, hflip=0.0)
    images, _, numbers = next(iter(data.train_dataloader()))
    wanted = samples(opened(root, hflip=0.0))
    for image, number in zip(images, numbers.tolist(), strict=True):
        assert torch.equal(image, wanted[number][0])


def test_scenes_are_made_where_they_are_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CocoData(few_scenes(tmp_path / "scenes", monkeypatch), dataset="scenes", sizes=[96], max_size=128)
    data.setup("fit")
    data.setup("test")
    assert list(data.class_names) == list("0123456789")
    assert [len(data.truth(split).images) for split in ("train", "val", "test")] == [16, 2, 2]
    scene, entry = draw_scene("test", 0), data.entry("test", 0)
    assert [each.label for each in entry.objects] == scene.labels
    assert np.asarray(data.image("test", 0)).tolist() == scene.image.tolist()
