import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flatten_transformer.data.mask_file import read_mask
from flatten_transformer.data.mask_folder import open_ade20k, open_mask_folder
from flatten_transformer.data.mask_numbers import IGNORED, Numbering


def rewrite(file: Path, value: int, mode: str = "L", size: tuple[int, int] = (40, 30)) -> None:
    Image.new(mode, size, value).save(file)


def test_the_numbers_of_a_mask_are_classes_and_255_is_none(mask_folder: Path) -> None:
    class_names, splits, *_ = open_mask_folder(mask_folder)
    assert class_names == ["sky", "ground"]
    assert {split: len(images) for split, images in splits.items()} == {"train": 3, "val": 1, "test": 1}
    image, mask = splits["train"][2]
    assert image.size == (40, 30)
    assert mask.dtype == torch.int64
    assert [int(mask[row, 0]) for row in (0, 10, 29)] == [0, 1, IGNORED]


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_a_mask_may_be_grey_of_any_depth_or_have_a_palette(mode: str, tmp_path: Path) -> None:
    rewrite(tmp_path / "mask.png", 1, mode)
    assert (read_mask(tmp_path / "mask.png") == 1).all()


def test_a_palette_keeps_its_indices_and_not_its_colours(tmp_path: Path) -> None:
    mask = Image.new("P", (2, 2), 3)
    mask.putpalette([200, 10, 10] * 256)
    mask.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == 3).all()


def test_more_classes_than_a_byte_holds_take_16_bits(mask_folder: Path) -> None:
    (mask_folder / "classes.txt").write_text("\n".join(f"kind {number}" for number in range(300)))
    rewrite(mask_folder / "masks" / "train" / "0.png", 299, "I;16")
    splits = open_mask_folder(mask_folder, ignore_index=65535).splits
    assert set(splits["train"][0][1].flatten().tolist()) == {299}


def test_another_number_can_mean_no_class(mask_folder: Path) -> None:
    rewrite(mask_folder / "masks" / "train" / "0.png", 7)
    splits = open_mask_folder(mask_folder, ignore_index=7).splits
    assert set(splits["train"][0][1].flatten().tolist()) == {IGNORED}
    with pytest.raises(ValueError, match=r"ignore_index 1 is the class 'ground' of .*classes\.txt: take a number that is no"):
        open_mask_folder(mask_folder, ignore_index=1)


def test_without_validation_images_a_share_of_the_training_images_takes_their_place(mask_folder: Path) -> None:
    shutil.rmtree(mask_folder / "images" / "val")
    found, again = (open_mask_folder(mask_folder, val_share=0.4).splits for _ in range(2))
    names = [[images.name(index) for index in range(len(images))] for images in (found["train"], found["val"])]
    assert sorted(names[0] + names[1]) == [str(mask_folder / "images" / "train" / f"{index}.jpg") for index in range(3)]
    assert [len(part) for part in names] == [2, 1]
    assert again["val"].pairs == found["val"].pairs
    with pytest.raises(ValueError, match="none of 3 training images can be kept for validation"):
        open_mask_folder(mask_folder, val_share=0.9)


def test_images_in_folders_of_folders_have_their_masks_likewise(mask_folder: Path) -> None:
    for kind, name in (("images", "2.jpg"), ("masks", "2.png")):
        (mask_folder / kind / "train" / "deeper").mkdir()
        (mask_folder / kind / "train" / name).rename(mask_folder / kind / "train" / "deeper" / name)
    assert len(open_mask_folder(mask_folder).splits["train"]) == 3


@pytest.mark.parametrize(
    ("value", "mode", "size", "message"),
    [
        (2, "L", (40, 30), r"in the mask .*0\.png the class number 2 is in 1200 pixels, but the classes are 0 … 1 and 255 means"),
        (1, "L", (30, 40), r"the mask .*0\.png has 30 × 40 pixels, its image 40 × 30: save it in the size of .*0\.jpg"),
        (1, "RGB", (40, 30), r"the mask .*0\.png is in colour \(RGB\).*: save it as a PNG of one channel or with a palette"),
        (1, "RGBA", (40, 30), r"is in colour \(RGBA\)"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named_with_its_cure(
    value: int, mode: str, size: tuple[int, int], message: str, mask_folder: Path
) -> None:
    rewrite(mask_folder / "masks" / "train" / "0.png", value, mode, size)
    with pytest.raises(ValueError, match=message):
        open_mask_folder(mask_folder).splits["train"][0]


def test_a_damaged_mask_is_named(mask_folder: Path) -> None:
    (mask_folder / "masks" / "train" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"masks/train/0\.png is not an image"):
        open_mask_folder(mask_folder).splits["train"][0]


def test_what_is_missing_is_said_before_anything_is_trained(mask_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*elsewhere: check data\.root"):
        open_mask_folder(mask_folder / "elsewhere")
    with pytest.raises(ValueError, match=r"classes\.txt is a file: data\.root must be a folder"):
        open_mask_folder(mask_folder / "classes.txt")
    for index in (0, 1):
        (mask_folder / "masks" / "train" / f"{index}.png").unlink()
    with pytest.raises(ValueError, match=r"the image .*0\.jpg and 1 more images has no mask .*0\.png: add it"):
        open_mask_folder(mask_folder)
    for file in (mask_folder / "images" / "train").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"images/train holds no image \(\.bmp"):
        open_mask_folder(mask_folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [("", "names 0 classes"), ("one\n", "names 1 classes"), ("one\n\ntwo", "line 2 of .* is empty: name the class of number 1")],
)
def test_a_list_of_classes_must_name_them(names: str, message: str, mask_folder: Path) -> None:
    (mask_folder / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match=message):
        open_mask_folder(mask_folder)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_keeps_its_numbers(bits: int, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(grey_png(bits, [0, 1] if bits == 1 else [0, 1, 2, 3]))
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 1] if bits == 1 else [0, 1, 2, 3]]


def grey_png(bits: int, values: list[int]) -> bytes:
    """Return a PNG of one row in grey of so many bits, which Pillow cannot write itself."""
    row = "".join(f"{value:0{bits}b}" for value in values).ljust(8, "0")
    packed = bytes([0, *(int(row[start : start + 8], 2) for start in range(0, len(row), 8))])

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_mask_in_a_format_that_changes_numbers_is_refused(kind: str, mask_folder: Path) -> None:
    Image.new("L", (40, 30), 1).save(mask_folder / "masks" / "train" / "0.png", kind)
    with pytest.raises(ValueError, match=r"mask .*0\.png (is a JPEG or the like|is in colour)"):
        open_mask_folder(mask_folder).splits["train"][0]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_with_transparency_is_refused(mode: str, mask_folder: Path) -> None:
    Image.new(mode, (40, 30), 1).save(mask_folder / "masks" / "train" / "0.png")
    with pytest.raises(ValueError, match=rf"the mask .*0\.png is (in colour|grey with transparency) \({mode}\)"):
        open_mask_folder(mask_folder).splits["train"][0]


def test_a_negative_number_is_no_class(mask_folder: Path) -> None:
    Image.new("I", (40, 30), -1).save(mask_folder / "masks" / "train" / "0.png", "TIFF")
    with pytest.raises(ValueError, match=r"in the mask .*0\.png the class number -1 is in 1200 pixels"):
        open_mask_folder(mask_folder).splits["train"][0]


def test_each_class_can_have_a_number_of_its_own(mask_folder: Path) -> None:
    numbers = np.zeros((30, 40), np.uint8)
    numbers[10:] = 255
    Image.fromarray(numbers).save(mask_folder / "masks" / "train" / "0.png")
    mask = open_mask_folder(mask_folder, None, mask_values=[255, 0]).splits["train"][0][1]
    assert [int(mask[row, 0]) for row in (0, 29)] == [1, 0]
    with pytest.raises(ValueError, match=r"the class number 1 is in 600 pixels, but the classes are 255, 0 and no number means"):
        open_mask_folder(mask_folder, None, mask_values=[255, 0]).splits["train"][1]


@pytest.mark.parametrize("values", [[0], [0, 0], [0, 1, 2], [], [-1, 0]])
def test_numbers_of_classes_that_cannot_be_are_refused(values: list[int], mask_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"mask_values must hold a number for each of the 2 classes of .*classes\.txt, no two"):
        open_mask_folder(mask_folder, None, mask_values=values)


def test_the_number_of_no_class_is_that_of_no_class(mask_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"ignore_index 255 is the class 'ground' .*: take a number .*, or null for none"):
        open_mask_folder(mask_folder, 255, mask_values=[0, 255])


def test_two_images_cannot_share_a_mask(mask_folder: Path) -> None:
    Image.new("RGB", (40, 30)).save(mask_folder / "images" / "train" / "0.png")
    with pytest.raises(ValueError, match=r"the images .*0\.jpg and 0\.png share the mask .*masks/train/0\.png: rename one"):
        open_mask_folder(mask_folder)


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".PNG"])
def test_a_mask_may_be_in_any_format_that_keeps_numbers(suffix: str, mask_folder: Path) -> None:
    file = mask_folder / "masks" / "train" / "0.png"
    Image.open(file).save(file.with_suffix(suffix))
    file.unlink()
    assert set(open_mask_folder(mask_folder).splits["train"].classes(0).flatten().tolist()) == {0, 1, IGNORED}
    file.with_suffix(suffix).rename(file.with_suffix(".jpg"))
    with pytest.raises(ValueError, match=r"the image .*0\.jpg has no mask .*0\.png: save 0\.jpg as PNG"):
        open_mask_folder(mask_folder)


def flat(mask_folder: Path, images: str, masks: str, ending: str = "") -> Path:
    """Move the training images and masks into other folders of a new data set."""
    root = mask_folder.parent / "mine"
    for kind, place in (("images", images), ("masks", masks)):
        for path in sorted((mask_folder / kind / "train").iterdir()):
            (root / place).mkdir(parents=True, exist_ok=True)
            path.rename(root / place / f"{path.stem}{ending * (kind == 'masks')}{path.suffix}")
    shutil.copy(mask_folder / "classes.txt", root)
    return root


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [
        ("images", "masks", ""),
        ("images", "labels", ""),
        ("images", "masks", "_mask"),
        ("images", "images", "_mask"),
        (".", ".", ""),
        ("JPEGImages", "SegmentationClass", ""),
        ("train/images", "train/masks", ""),
        ("train", "train", "_mask"),
        ("images/Training", "masks/Training", ""),
    ],
)
def test_layouts_that_tools_write_are_read(images: str, masks: str, ending: str, mask_folder: Path) -> None:
    found = open_mask_folder(flat(mask_folder, images, masks, ending), val_share=0.4)
    assert [len(found.splits[split]) for split in ("train", "val", "test")] == [2, 1, 1]
    both = [*found.splits["train"].pairs, *found.splits["val"].pairs]
    assert sorted((image.name, mask.name) for image, mask in both) == [(f"{n}.jpg", f"{n}{ending}.png") for n in range(3)]
    assert found.class_names == ["sky", "ground"]


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "val2017"])
def test_the_split_to_choose_by_may_have_any_of_its_names(name: str, mask_folder: Path) -> None:
    for kind in ("images", "masks"):
        (mask_folder / kind / "val").rename(mask_folder / kind / name)
    assert [len(open_mask_folder(mask_folder).splits[split]) for split in ("train", "val")] == [3, 1]


def test_a_list_of_classes_may_be_json(mask_folder: Path) -> None:
    (mask_folder / "classes.txt").unlink()
    for content in ('["sky", "ground"]', '{"1": "ground", "0": "sky"}'):
        (mask_folder / "classes.json").write_text(content)
        assert open_mask_folder(mask_folder).class_names == ["sky", "ground"]
    for content, message in (
        ("[", "cannot be read as JSON"),
        ('{"1": "a", "2": "b"}', "holds no names"),
        ("[1, 2]", "holds no names"),
    ):
        (mask_folder / "classes.json").write_text(content)
        with pytest.raises(ValueError, match=rf"classes\.json {message}"):
            open_mask_folder(mask_folder)


def test_without_a_list_classes_are_numbered_by_all_masks(mask_folder: Path) -> None:
    (mask_folder / "classes.txt").unlink()
    rewrite(mask_folder / "masks" / "val" / "0.png", 2)
    assert open_mask_folder(mask_folder).class_names == ["class 0", "class 1", "class 2"]
    assert open_mask_folder(mask_folder, mask_values=[0, 1, 2, 9]).class_names == ["class 0", "class 1", "class 2", "class 9"]


@pytest.mark.parametrize(("numbers", "shown"), [((0, 255), "0, 255 .255 means none."), ((0, 128), "0, 128"), ((5, 5), "5")])
def test_numbers_that_do_not_count_classes_are_refused(numbers: tuple[int, int], shown: str, mask_folder: Path) -> None:
    (mask_folder / "classes.txt").unlink()
    for number, mask in enumerate((mask_folder / "masks").rglob("*.png")):
        rewrite(mask, numbers[number % 2])
    with pytest.raises(
        ValueError, match=rf"no classes\.txt, and its masks hold the numbers {shown}, which .*--data\.mask_values"
    ):
        open_mask_folder(mask_folder)


@pytest.mark.parametrize("name", ["images/train/0.jpg", "masks/train/0.png"])
def test_a_link_that_leads_out_is_followed_where_that_is_allowed(name: str, mask_folder: Path, tmp_path: Path) -> None:
    (mask_folder / name).rename(tmp_path / "elsewhere")
    (mask_folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{name} leads out of its data set, to .*elsewhere: .*data\.outside_links true"):
        open_mask_folder(mask_folder).splits["train"][0]
    open_mask_folder(mask_folder, outside_links=True).splits["train"][0]


@pytest.mark.parametrize("name", ["images", "masks", "images/train", "masks/train"])
def test_folders_may_be_links(name: str, mask_folder: Path, tmp_path: Path) -> None:
    (mask_folder / name).rename(tmp_path / "elsewhere")
    (mask_folder / name).symlink_to(tmp_path / "elsewhere")
    open_mask_folder(mask_folder).splits["train"][0]


def test_a_pipe_is_never_opened(mask_folder: Path) -> None:
    (mask_folder / "images" / "train" / "0.jpg").unlink()
    os.mkfifo(mask_folder / "images" / "train" / "0.jpg")
    splits = open_mask_folder(mask_folder).splits
    names = [splits[split].name(index) for split in splits for index in range(len(splits[split]))]
    assert len(names) == 4  # two to learn from, one to validate, which is the test image too
    assert not any(name.endswith("train/0.jpg") for name in names)
    (mask_folder / "masks" / "train" / "1.png").unlink()
    os.mkfifo(mask_folder / "masks" / "train" / "1.png")
    with pytest.raises(ValueError, match=r"1\.jpg has no mask"):
        open_mask_folder(mask_folder)


@pytest.fixture
def ade20k(mask_folder: Path) -> Path:
    (mask_folder / "masks").rename(mask_folder / "annotations")
    for kind in ("images", "annotations"):
        (mask_folder / kind / "train").rename(mask_folder / kind / "training")
        (mask_folder / kind / "val").rename(mask_folder / kind / "validation")
    return mask_folder


def test_number_0_of_ade20k_is_no_class(ade20k: Path) -> None:
    numbers = np.zeros((30, 40), np.uint8)
    numbers[0], numbers[1] = 1, 150
    Image.fromarray(numbers).save(ade20k / "annotations" / "training" / "0.png")
    class_names, splits, *_ = open_ade20k(ade20k)
    assert [int(splits["train"][0][1][row, 0]) for row in range(3)] == [0, 149, IGNORED]
    assert (len(class_names), class_names[0], class_names[149]) == (150, "class 1", "class 150")
    assert splits["test"] is splits["val"]
    rewrite(ade20k / "annotations" / "training" / "1.png", 151)
    with pytest.raises(ValueError, match="the class number 151 is in 1200 pixels, but the classes are 1 … 150"):
        splits["train"][1]


def test_the_names_of_ade20k_come_with_it(ade20k: Path) -> None:
    rows = [f"{number} \t0.1\t10\t1\tthing {number}, synonym" for number in range(1, 151)]
    info = ade20k / "objectInfo150.txt"
    info.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    class_names = open_ade20k(ade20k)[0]
    assert class_names[:2] == ["thing 1", "thing 2"]
    info.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows[1:]]))
    with pytest.raises(ValueError, match=r"objectInfo150\.txt does not name the classes 1 … 150"):
        open_ade20k(ade20k)


def test_zero_can_be_a_class_or_none() -> None:
    numbers = np.array([[0, 1, 2]])
    assert Numbering(3).classes_of(numbers).tolist() == [[0, 1, 2]]
    assert Numbering(2, zero_is_no_class=True).classes_of(numbers).tolist() == [[IGNORED, 0, 1]]
