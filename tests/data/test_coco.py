import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as rle

from flatten_transformer.data.coco import CocoFile, Packed, encode, read_coco
from tests.coco_files import annotation, content, objects


def read(folder: Path, masks: bool = True, **changes: Any) -> CocoFile:
    path = folder / "boxes.json"
    path.write_text(json.dumps(content(**changes)))
    return read_coco(path, masks=masks)


def test_classes_count_without_holes_in_the_order_of_their_ids(tmp_path: Path) -> None:
    file = read(tmp_path)
    assert (file.class_names, file.category_ids) == (["car", "cat", "toothbrush"], [3, 17, 90])
    assert [[each.label for each in image.objects] for image in file.images] == [[0, 2], [1], [0], []]


def test_crowds_are_not_learned_from_but_judged_by(tmp_path: Path) -> None:
    file = read(tmp_path)
    assert file.left_out == {"crowds": ["annotation 5"]}
    assert [each.annotation_id for image in file.images for each in image.objects] == [1, 2, 3, 4]
    assert [entry["id"] for entry in file.truth["annotations"]] == [1, 2, 3, 4, 5]


def test_boxes_are_cut_to_their_image_and_dropped_where_nothing_is_left(tmp_path: Path) -> None:
    boxes = [(-5, -6, 20, 30), (60, 40, 20, 20), (70, 50, 5, 5), (3, 3, 0, 9), (3, 3, -4, 9), (3, 3, 1e-7, 9)]
    file = read(tmp_path, annotations=[annotation(n, 100, 3, box) for n, box in enumerate(boxes)])
    assert [each.box for each in file.images[0].objects] == [(0.0, 0.0, 15.0, 24.0), (60.0, 40.0, 64.0, 48.0)]
    assert file.left_out == {"boxes without area in their image": [f"annotation {n}" for n in range(2, 6)]}
    assert [entry["id"] for entry in file.truth["annotations"]] == [0, 1]  # nor are they judged by


def test_a_mask_without_three_corners_is_left_out_where_masks_are_learned(tmp_path: Path) -> None:
    thin = [annotation(1, 100, 3, (4, 6, 20, 24), segmentation=[[4, 6, 24, 30]])]
    assert read(tmp_path, annotations=thin).left_out == {"masks without area": ["annotation 1"]}
    assert len(read(tmp_path, masks=False, annotations=thin).images[0].objects) == 1


def test_masks_are_not_needed_where_boxes_are_learned(tmp_path: Path) -> None:
    bare = [{name: value for name, value in entry.items() if name != "segmentation"} for entry in objects()]
    assert len(read(tmp_path, masks=False, annotations=bare).images[0].objects) == 2


def test_what_the_evaluation_needs_is_completed(tmp_path: Path) -> None:
    entry = annotation(1, 100, 3, (4, 6, 20, 24), segmentation=[[4, 6, 24, 6, 24, 30]])
    del entry["area"], entry["iscrowd"]
    (with_mask,), (with_box,) = (read(tmp_path, masks, annotations=[dict(entry)]).truth["annotations"] for masks in (True, False))
    assert with_mask["iscrowd"] == 0
    assert with_mask["area"] == pytest.approx(240, rel=0.1)  # half of the box
    assert with_box["area"] == 480


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": None}, "has no list 'annotations': a COCO annotation file is"),
        ({"images": []}, "lists no images"),
        ({"categories": []}, "lists no categories"),
        ({"categories": [{"id": 3}]}, "category 3 has no name"),
        ({"categories": [{"id": "3", "name": "cat"}]}, "category number 0 has no whole number as its id"),
        ({"images": [{"id": 100, "width": 3, "height": 3}]}, "image 100 has no file_name"),
        (
            {"images": [{"id": 1, "file_name": "a", "width": 0, "height": 3}]},
            "image 1 (a) has no height and width in pixels, got [3, 0]",
        ),
        ({"annotations": [annotation(7, 5, 3, (1, 1, 3, 3))]}, "annotation 7 is of image 5, which the file does not list"),
        ({"annotations": [annotation(7, 100, 4, (1, 1, 3, 3))]}, "annotation 7 has the unknown category_id 4"),
        ({"annotations": [annotation(7, 100, 3, (1, 1, 3, 3))] * 2}, "there are two of annotation 7"),
        ({"annotations": [annotation(7, 100, 3, (1, 1, 3, 3), bbox=[1, 2, 3])]}, "annotation 7 has no bbox of four numbers"),
        (
            {"annotations": [annotation(7, 100, 3, (1, 1, 3, 3), bbox=[1, 2, 3, float("nan")])]},
            "annotation 7 has no bbox of four",
        ),
        ({"annotations": [annotation(7, 100, 3, (1, 1, 3, 3), segmentation=None)]}, "annotation 7 has no segmentation to learn"),
        (
            {"annotations": [annotation(7, 100, 3, (1, 1, 3, 3), segmentation=[["a"] * 6])]},
            "annotation 7 has a polygon that holds",
        ),
        (
            {"annotations": [annotation(7, 100, 3, (1, 1, 3, 3), segmentation={"size": [64, 48], "counts": [9]})]},
            "annotation 7 has a run-length mask of [64, 48], but its image is [48, 64]",
        ),
    ],
)
def test_what_is_not_as_it_must_be_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"boxes\.json.*{re.escape(message)}"):
        read(tmp_path, **changes)


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("[]", "has no list 'images'")])
def test_a_file_of_another_kind_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_coco(tmp_path / "boxes.json", masks=False)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*absent\.json: check data\.root"):
        read_coco(tmp_path / "absent.json", masks=False)


def test_polygons_and_both_run_lengths_give_one_mask() -> None:
    polygon = encode([[2, 1, 6, 1, 6, 5, 2, 5]], 8, 10)
    counts = [17, 4, 4, 4, 4, 4, 4, 4, 35]
    for other in ({"size": [8, 10], "counts": counts}, polygon, {**polygon, "counts": polygon["counts"].decode()}):
        np.testing.assert_array_equal(rle.decode(encode(other, 8, 10)), rle.decode(polygon))
    assert rle.decode(polygon)[1:5, 2:6].all()


def test_a_packed_list_is_a_list() -> None:
    items = [None, "", {"a": [1, 2]}, "ü" * 500]
    packed = Packed(items)
    assert list(packed) == items
    assert (packed[-1], packed[-4]) == (items[-1], None)
    with pytest.raises(IndexError):
        packed[4]
