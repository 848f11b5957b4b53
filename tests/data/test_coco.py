import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as rle

from flatten_transformer.data.coco import CocoFile, Packed, read_coco
from flatten_transformer.data.coco_masks import encode
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
        ({"categories": [{"id": 3, "name": " "}]}, "category 3 has no name"),
        (
            {"categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "cat"}]},
            "category 5 has the name of category 3, 'cat': rename or remove one of them",
        ),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe\xff", "cannot be read as JSON"),
        (b"{\xff}", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"a":' * 100_000, "cannot be read as JSON"),
        (b"9" * 5000, "cannot be read as JSON|has no list"),
        (b"[]", "has no list 'images'"),
        (b"null", "has no list 'images'"),
        (b'{"images": [], "images": []}', "cannot be read as JSON .the key 'images' stands twice in the object with the id None"),
        (b'{"images": [{"id": 7, "id": 8}]}', "the key 'id' stands twice in the object with the id 8"),
    ],
    ids=range(11),
)
def test_a_file_of_another_kind_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"boxes\.json.*({message})"):
        read_coco(tmp_path / "boxes.json", masks=False)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_may_have_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    categories = [{"id": 3, "name": "Käfer"}, {"id": 17, "name": "猫"}, {"id": 90, "name": "b"}]
    (tmp_path / "boxes.json").write_bytes(json.dumps(content(categories=categories), ensure_ascii=False).encode(encoding))
    assert read_coco(tmp_path / "boxes.json", masks=True).class_names == ["Käfer", "猫", "b"]


@pytest.mark.parametrize("value", [0, 1, False, True])
def test_a_crowd_is_one_or_true(value: Any, tmp_path: Path) -> None:
    more = annotation(7, 100, 3, (1, 1, 9, 9), iscrowd=value)
    file = read(tmp_path, annotations=[*objects(), more])
    assert ("annotation 7" in file.left_out["crowds"]) == bool(value)
    assert repr(file.truth["annotations"][-1]["iscrowd"]) == str(int(value))


ODD = [None, "", "0", "1", 1.0, 0.5, True, -1, 10**400, 2**63, float("nan"), float("inf"), [], [1], [[1]], {}, {"a": 1}]


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "iscrowd", "area", "bbox", "segmentation"])
@pytest.mark.parametrize("odd", ODD, ids=str)
def test_an_annotation_is_right_or_refused_with_its_id(key: str, odd: Any, tmp_path: Path) -> None:
    right: dict[str, list[Any]] = {"iscrowd": [True], "area": [None, 1.0, 0.5, 0], "id": [-1], "segmentation": [[]]}
    entry = {**annotation(7, 100, 3, (1, 1, 9, 9)), key: odd}
    if any(odd is each or (odd == each and type(odd) is type(each)) for each in right.get(key, [])):
        read(tmp_path, annotations=[entry, *objects()[2:]])
        return
    which = "number 0" if key == "id" else "7"
    with pytest.raises(ValueError, match=rf"^[^\n]*boxes\.json: annotation {which} [^\n]{{,400}}$"):
        read(tmp_path, annotations=[entry])


@pytest.mark.parametrize("kind", ["images", "categories"])
@pytest.mark.parametrize("key", ["id", "file_name", "height", "width", "name"])
@pytest.mark.parametrize("odd", [*ODD, "a\nb", "\0", "\ud800"], ids=ascii)
def test_an_image_or_category_is_right_or_refused_with_its_id(kind: str, key: str, odd: Any, tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = content()[kind]
    if key not in entries[0]:
        return
    changed: dict[str, Any] = {kind: [{**entries[0], key: odd}, *entries[1:]]}
    if key in ("file_name", "name") and odd in ("0", "1"):
        read(tmp_path, **changed)
        return
    with pytest.raises(ValueError, match=r"^[^\n]*boxes\.json: (image|category|annotation) [^\n]{,400}$"):
        read(tmp_path, **changed)


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
@pytest.mark.parametrize("odd", [None, True, 1, "a", [], {}], ids=str)
def test_an_entry_that_is_no_object_is_refused(kind: str, odd: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"boxes\.json: \w+ number 0 has no whole number as its id, got None"):
        read(tmp_path, **{kind: [odd]})  # type: ignore[arg-type]  # masks is no kind


def test_masks_are_not_looked_at_where_boxes_are_learned(tmp_path: Path) -> None:
    broken = [annotation(7, 100, 3, (1, 1, 9, 9), segmentation={"size": [48, 64], "counts": "PPP"})]
    assert "segmentation" not in read(tmp_path, masks=False, annotations=broken).truth["annotations"][0]


def test_an_image_without_an_end_costs_nothing(tmp_path: Path) -> None:
    images = [{"id": 100, "file_name": "a.png", "width": 2**31, "height": 2}]
    with pytest.raises(ValueError, match=r"image 100 \(a\.png\) has no height and width in pixels, got \[2, 2147483648\]"):
        read(tmp_path, images=images, annotations=[])


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
