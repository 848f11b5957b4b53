import contextlib
import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from flatten_transformer.data.coco import CocoFile
from flatten_transformer.data.coco_masks import encode
from flatten_transformer.tasks.detection.metrics import AveragePrecision, coco_results, evaluate
from tests.coco_files import annotation

SIDE = 240
CATEGORIES = (3, 17, 90)
Detections = dict[int, dict[str, Tensor]]


def box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Return left, top, width and height: small, medium and large alike."""
    side = float(rng.choice([20, 60, 140]))
    width, height = side * rng.uniform(0.6, 1.4, 2)
    return rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height), width, height


@pytest.fixture
def truth() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = [{"id": 5 + 3 * n, "file_name": f"{n}.jpg", "width": SIDE, "height": SIDE} for n in range(12)]
    entries: list[dict[str, Any]] = []
    for image in images[:-1]:  # the last holds nothing
        for _ in range(int(rng.integers(1, 9))):
            number, category = len(entries) + 1, int(rng.choice(CATEGORIES))
            entries.append(annotation(number, image["id"], category, box(rng)))
            if rng.random() < 0.15:
                crowd = encode(entries[-1]["segmentation"], SIDE, SIDE)
                entries[-1] |= {"iscrowd": 1, "segmentation": {**crowd, "counts": crowd["counts"].decode()}}
    return {"images": images, "annotations": entries, "categories": [{"id": n, "name": str(n)} for n in CATEGORIES]}


def blocks(boxes: Tensor) -> Tensor:
    """Return masks that fill their boxes."""
    masks = torch.zeros(len(boxes), 1, SIDE, SIDE)
    for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[:, top:bottom, left:right] = 0.9
    return masks


def file_of(truth: dict[str, Any]) -> CocoFile:
    return CocoFile(None, [str(n) for n in CATEGORIES], list(CATEGORIES), [], truth)  # type: ignore[arg-type]  # not read


def guesses(truth: dict[str, Any], wrong: float = 0.3, seed: int = 1) -> Detections:
    """Return detections near the truth, some of another class, and others nowhere near it."""
    rng = np.random.default_rng(seed)
    found: Detections = {}
    for image in truth["images"]:
        entries = [entry for entry in truth["annotations"] if entry["image_id"] == image["id"]]
        boxes = [np.array(entry["bbox"]) * rng.uniform(1 - 0.3 * wrong, 1 + 0.3 * wrong, 4) for entry in entries]
        labels = [CATEGORIES.index(entry["category_id"]) for entry in entries]
        if wrong:
            labels = [int(rng.integers(3)) if rng.random() < wrong else label for label in labels]
            boxes += [np.array(box(rng)) for _ in range(3)]
            labels += rng.integers(0, 3, 3).tolist()
        corners = torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32)
        corners[:, 2:] += corners[:, :2]
        corners = corners.clamp(0, SIDE)
        masks = torch.zeros(len(boxes), 1, SIDE, SIDE)
        for mask, (left, top, right, bottom) in zip(masks, corners.round().int().tolist(), strict=True):
            mask[:, top:bottom, left:right] = 0.9
        scores = torch.tensor(rng.random(len(boxes)), dtype=torch.float32)
        found[image["id"]] = {
            "boxes": corners,
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": scores,
            "masks": masks,
        }
    return found


def judged(truth: dict[str, Any], found: Detections) -> dict[str, float]:
    metric = AveragePrecision(file_of(truth), masks=True)
    metric.update(list(found), list(found.values()))
    return metric.compute()


def by_pycocotools(truth: dict[str, Any], found: Detections, kind: str) -> list[float]:
    results = [result for number, each in found.items() for result in coco_results(number, each, CATEGORIES)]
    if kind == "segm":
        results = [{name: value for name, value in result.items() if name != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(truth)
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:6]]


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_pycocotools_own(truth: dict[str, Any], seed: int) -> None:
    found = guesses(truth, seed=seed)
    came = judged(truth, found)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        wanted = by_pycocotools(truth, found, kind)
        assert 0.05 < wanted[0] < 0.9
        numbers = [value for key, value in came.items() if key.startswith(name)]
        assert numbers == pytest.approx(wanted, abs=1e-6)
    assert list(came)[:6] == ["box_ap", "box_ap50", "box_ap75", "box_ap_small", "box_ap_medium", "box_ap_large"]


def test_the_truth_itself_scores_one_and_noise_almost_nothing(truth: dict[str, Any]) -> None:
    perfect = guesses(truth, wrong=0)
    assert judged(truth, perfect)["box_ap"] == pytest.approx(1)
    assert judged(truth, perfect)["mask_ap50"] == pytest.approx(1)
    rng = np.random.default_rng(0)
    for each in perfect.values():  # anywhere, of any class
        corners = torch.tensor(np.array([box(rng) for _ in range(20)]), dtype=torch.float32)
        corners[:, 2:] += corners[:, :2]
        each |= {"boxes": corners, "labels": torch.tensor(rng.integers(0, 3, 20)), "scores": torch.rand(20)}
        each["masks"] = blocks(corners)
    assert judged(truth, perfect)["box_ap"] < 0.02
    assert judged(truth, perfect)["mask_ap"] < 0.02


def test_no_detection_at_all_scores_zero(truth: dict[str, Any]) -> None:
    found = {number: {name: value[:0] for name, value in each.items()} for number, each in guesses(truth).items()}
    assert judged(truth, found)["box_ap"] == judged(truth, found)["mask_ap"] == 0


def test_images_that_were_not_seen_do_not_count(truth: dict[str, Any]) -> None:
    found = {number: each for number, each in guesses(truth, wrong=0).items() if number < 20}
    assert judged(truth, found)["box_ap"] == pytest.approx(1)


def test_an_image_seen_twice_counts_as_it_was_seen_first(truth: dict[str, Any]) -> None:
    found = guesses(truth)
    metric = AveragePrecision(file_of(truth), masks=False)
    metric.update(list(found), list(found.values()))
    metric.update(list(found), [{name: value[:1] for name, value in each.items()} for each in found.values()])
    assert metric.compute() == {name: value for name, value in judged(truth, found).items() if name.startswith("box")}


def test_without_any_object_there_is_nothing_to_judge(truth: dict[str, Any]) -> None:
    found = {number: each for number, each in guesses(truth).items() if number == truth["images"][-1]["id"]}
    assert judged(truth, found)["box_ap"] == -1


def test_the_truth_is_left_as_it_was(truth: dict[str, Any]) -> None:
    before = copy.deepcopy(truth)
    judged(truth, guesses(truth))
    assert truth == before


def test_shares_of_any_size_are_put_together(truth: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = guesses(truth)
    numbers = list(found)
    shares = []
    for part in (numbers[1::2][:3], [*numbers[::2], *numbers[1::2][3:]]):
        metric = AveragePrecision(file_of(truth), masks=True)
        metric.update(part, [found[number] for number in part])
        shares.append(metric.results)

    def gather(into: list[Any], _: Any) -> None:
        into[:] = shares

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    assert metric.compute() == pytest.approx(judged(truth, found), abs=0)


def test_results_are_those_that_cocos_tools_read(truth: dict[str, Any]) -> None:
    number, each = next(iter(guesses(truth).items()))
    first = coco_results(number, each, CATEGORIES)[0]
    left, top, right, bottom = each["boxes"][0].tolist()
    assert first["bbox"] == pytest.approx([left, top, right - left, bottom - top])
    assert (first["image_id"], first["category_id"]) == (number, CATEGORIES[int(each["labels"][0])])
    assert first["segmentation"]["size"] == [SIDE, SIDE]
    assert isinstance(first["segmentation"]["counts"], str)
    assert evaluate(truth, [], [number], "bbox")[0] == 0


def test_a_mask_is_as_large_as_its_own_area_whatever_its_box() -> None:
    image = {"id": 1, "file_name": "a.jpg", "width": SIDE, "height": SIDE}
    entry = annotation(1, 1, CATEGORIES[0], (100.0, 100.0, 60.0, 60.0))
    truth = {"images": [image], "annotations": [entry], "categories": [{"id": n, "name": str(n)} for n in CATEGORIES]}
    boxes = torch.tensor([[10.0, 10, 46, 46], [100, 100, 160, 160]])  # the first is wrong: a medium box with a small mask
    masks = blocks(torch.tensor([[10.0, 10, 30, 30], [100, 100, 160, 160]]))
    found = {1: {"boxes": boxes, "labels": torch.tensor([0, 0]), "scores": torch.tensor([0.9, 0.5]), "masks": masks}}
    numbers = judged(truth, found)
    assert (numbers["box_ap_medium"], numbers["mask_ap_medium"]) == pytest.approx((0.5, 1.0))
    assert numbers["mask_ap_medium"] == pytest.approx(by_pycocotools(truth, found, "segm")[4])


@pytest.mark.parametrize("first", [0, -3, 2**62])
def test_ids_of_annotations_change_nothing(truth: dict[str, Any], first: int) -> None:
    found = [result for image_id, each in guesses(truth).items() for result in coco_results(image_id, each, CATEGORIES)]
    ids = [image["id"] for image in truth["images"]]
    moved = {**truth, "annotations": [{**entry, "id": first + n} for n, entry in enumerate(truth["annotations"])]}
    for kind in ("bbox", "segm"):
        assert evaluate(moved, found, ids, kind) == evaluate(truth, found, ids, kind)


def test_the_precision_of_each_class_is_that_counted_by_hand_and_there_is_none_of_a_class_without_objects() -> None:
    image = {"id": 1, "file_name": "a.jpg", "width": SIDE, "height": SIDE}
    places = [(3, (10.0, 10.0, 50.0, 50.0)), (17, (100.0, 10.0, 50.0, 50.0)), (17, (100.0, 100.0, 50.0, 50.0))]
    entries = [annotation(number, 1, *place) for number, place in enumerate(places, 1)]
    truth = {"images": [image], "annotations": entries, "categories": [{"id": n, "name": str(n)} for n in CATEGORIES]}
    boxes = torch.tensor([[10.0, 10, 60, 36], [100, 10, 150, 60]])  # the first has IoU 26 / 50 = 0.52, the third is missed
    found = {1: {"boxes": boxes, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.8])}}
    metric = AveragePrecision(file_of(truth), masks=False)
    metric.update(list(found), list(found.values()))
    numbers = metric.compute()
    half = 51 / 101  # of the recalls 0, 0.01 … 1
    assert metric.per_class["box_ap"] == pytest.approx([1 / 10, half, math.nan], nan_ok=True)
    assert metric.per_class["box_ap50"] == pytest.approx([1, half, math.nan], nan_ok=True)
    assert metric.support == [1, 2, 0]
    assert numbers["box_ap"] == pytest.approx((1 / 10 + half) / 2)


def test_the_mean_over_the_classes_is_the_average_precision(truth: dict[str, Any]) -> None:
    found = guesses(truth)
    metric = AveragePrecision(file_of(truth), masks=True)
    metric.update(list(found), list(found.values()))
    numbers = metric.compute()
    for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50"):
        assert len(metric.per_class[name]) == 3
        assert np.nanmean(metric.per_class[name]) == pytest.approx(numbers[name])
    entries = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    assert metric.support == [sum(entry["category_id"] == category for entry in entries) for category in CATEGORIES]
