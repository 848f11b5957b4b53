import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from flatten_transformer.data import scenes
from flatten_transformer.data.mask_numbers import IGNORED
from flatten_transformer.tasks.segmentation import data as segmentation_data
from flatten_transformer.tasks.segmentation.augmentation import Augmentation
from flatten_transformer.tasks.segmentation.data import SegmentationData
from flatten_transformer.tasks.segmentation.preprocessing import SegmentationPreprocessing
from tests.scenes import few_scenes

PLAIN = SegmentationPreprocessing(3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
STILL: dict[str, Any] = {"crop_size": 32, "scale": (1.0, 1.0), "max_share": 1.0, "hflip": 0.0, "distortion": False}


def augmentation(preprocessing: SegmentationPreprocessing = PLAIN, **changes: Any) -> Augmentation:
    return Augmentation(preprocessing, **(STILL | changes))


def numbered(height: int, width: int) -> tuple[Image.Image, tv_tensors.Mask]:
    """Return an image whose red says the class of each pixel, and its mask: both must move together."""
    numbers = (np.arange(height)[:, None] * 3 + np.arange(width)[None]) // 16
    pixels = np.stack([numbers, numbers * 0, numbers * 0], axis=2).astype(np.uint8)
    return Image.fromarray(pixels), tv_tensors.Mask(torch.from_numpy(numbers.astype(np.int64)))


@pytest.mark.parametrize("change", [{}, {"hflip": 1.0}, {"crop_size": 48}])
def test_the_mask_moves_with_its_image(change: dict[str, Any]) -> None:
    image, mask = augmentation(**change)(*numbered(60, 50))
    side = change.get("crop_size", 32)
    assert image.shape == (3, side, side)
    torch.testing.assert_close(image[0] * 255, mask.float(), rtol=0, atol=1e-3)


def test_a_resize_moves_both_and_makes_no_new_class() -> None:
    wide = np.zeros((60, 50), np.uint8)
    wide[:, 25:] = 200
    mask = tv_tensors.Mask(torch.from_numpy((wide > 0).astype(np.int64) * 5))
    for factor in (0.7, 2.0):
        image, moved = augmentation(scale=(factor, factor))(Image.fromarray(wide).convert("RGB"), mask)
        assert set(moved.unique().tolist()) <= {0, 5}
        inner = (image[0] < 0.02) | (image[0] > 0.76)  # away from the blurred edge
        assert torch.equal(moved[inner] == 5, image[0][inner] > 0.5)


def test_what_is_smaller_than_the_crop_is_padded_with_the_mean_and_with_no_class() -> None:
    preprocessing = SegmentationPreprocessing(3, (0.2, 0.4, 0.6), (0.5, 0.5, 0.5))
    image, mask = augmentation(preprocessing)(Image.new("RGB", (20, 10), "white"), tv_tensors.Mask(torch.ones(10, 20).long()))
    outside = mask == IGNORED
    assert (~outside).sum() == 200
    assert image[:, outside].abs().max() < 0.005
    assert image[:, ~outside].min() > 0.7


def test_a_crop_that_one_class_fills_is_drawn_again() -> None:
    mask = torch.zeros(64, 64, dtype=torch.long)
    mask[:, 48:] = 1
    image = Image.new("RGB", (64, 64))

    def share(max_share: float) -> float:
        draw = augmentation(max_share=max_share)
        crops = [draw(image, tv_tensors.Mask(mask))[1] for _ in range(30)]
        return sum(float((crop == 1).float().mean() > 0.25) for crop in crops) / 30

    assert share(0.75) > share(1.0) + 0.2


def test_light_and_colour_change_the_image_alone() -> None:
    image, mask = numbered(40, 40)
    grey = Image.new("RGB", image.size, (90, 120, 150))
    drawn = [augmentation(distortion=True, crop_size=40)(grey, mask) for _ in range(8)]
    assert len({round(float(changed.mean()), 4) for changed, _ in drawn}) > 3
    assert all(torch.equal(moved, mask) for _, moved in drawn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_size": 16}, "crop_size must be at least 32 pixels, got 16"),
        ({"scale": (2.0, 1.0)}, r"scale must hold two positive numbers, the smaller first, got \[2.0, 1.0\]"),
        ({"max_share": 0.0}, "max_share must lie in 0 … 1, above 0, got 0.0"),
        ({"hflip": 1.5}, "hflip must lie in 0 … 1, got 1.5"),
    ],
)
def test_an_augmentation_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmentation(**change)


@pytest.mark.parametrize(
    ("short_side", "long_side", "wanted"),
    [
        (None, None, (600, 800)),
        (300, None, (300, 400)),
        (300, 350, (262, 350)),
        (None, 400, (300, 400)),
        (1200, None, (1200, 1600)),
    ],
)
def test_an_image_is_resized_in_proportion(short_side: int | None, long_side: int | None, wanted: tuple[int, int]) -> None:
    preprocessing = SegmentationPreprocessing(3, (0.5,) * 3, (0.5,) * 3, short_side, long_side)
    assert preprocessing.size(600, 800) == wanted
    assert preprocessing.size(800, 600) == wanted[::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_chans": 2}, "in_chans must be 1"),
        ({"mean": (0.5,)}, "mean must hold one number for each of in_chans=3"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be positive"),
        ({"short_side": 0}, "short_side must be at least 1, got 0"),
        ({"short_side": 64, "long_side": 32}, "long_side must be at least short_side, got 32 and 64"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"stride": 8}, "a stride of 8 needs a window to move"),
        ({"window": 32, "stride": 33}, "stride must lie in 1 … window = 32"),
    ],
)
def test_preprocessing_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationPreprocessing(**({"in_chans": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3} | change))  # type: ignore[arg-type]


def opened(root: Path, **options: Any) -> SegmentationData:
    data = SegmentationData("folder", root=root, **({"batch_size": 2, "crop_size": 32} | options))
    data.setup("fit")
    return data


def test_training_sees_full_batches_of_crops(mask_folder: Path) -> None:
    data = opened(mask_folder)
    batches = list(data.train_dataloader())
    assert [(batch.images.shape, batch.masks.shape) for batch in batches] == [((2, 3, 32, 32), (2, 32, 32))]
    names = data.names(batches[0])
    assert len(set(names)) == 2
    assert all(Path(name).parent == mask_folder / "images" / "train" for name in names)


def test_a_batch_that_the_images_do_not_fill_shrinks_and_says_so(mask_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = opened(mask_folder, batch_size=4)
    assert [batch.images.shape[0] for batch in data.train_dataloader()] == [3]
    assert "3 training images do not fill a batch of 4: each step sees 3" in caplog.text


def test_evaluation_sees_each_image_in_its_size_and_each_mask_in_that_of_its_file(mask_folder: Path) -> None:
    Image.new("RGB", (90, 60)).save(mask_folder / "images" / "val" / "1.jpg")
    Image.new("L", (90, 60), 1).save(mask_folder / "masks" / "val" / "1.png")
    batches = list(opened(mask_folder, short_side=64).val_dataloader())
    images, masks, indices = batches[0]
    assert [tuple(image.shape) for image in images] == [(3, 64, 85), (3, 64, 96)]
    assert [tuple(mask.shape) for mask in masks] == [(30, 40), (60, 90)]
    assert list(indices) == [0, 1]


def test_an_image_that_cannot_be_used_stops_the_training_or_is_skipped(mask_folder: Path) -> None:
    (mask_folder / "images" / "train" / "1.jpg").write_bytes(b"broken")
    Image.new("L", (40, 30), 77).save(mask_folder / "masks" / "train" / "2.png")
    with pytest.raises(ValueError, match=r"1\.jpg is not an image|the class number 77.*on_bad_image skip"):
        list(opened(mask_folder).train_dataloader())
    data = opened(mask_folder, on_bad_image="skip")
    batch = next(iter(data.train_dataloader()))
    assert list(batch.indices) == [0, 0]
    assert all(Path(name).name in ("1.jpg", "2.jpg") for name in data.skipped("train"))
    assert data.skipped("val") == data.skipped("test") == []


def paint(root: Path, split: str, *rows: tuple[int, int]) -> None:
    """Give all masks of a split rows of numbers: each from the row that the number before it ends at."""
    for file in (root / "masks" / split).iterdir():
        numbers, top = np.zeros((30, 40), np.uint8), 0
        for height, number in rows:
            numbers[top : top + height], top = number, top + height
        Image.fromarray(numbers).save(file)


@pytest.mark.parametrize(("held", "values"), [(0, "[0, 255]"), (1, "[255, 1]")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_in_black_and_white_are_not_taken_for_no_class(held: int, values: str, split: str, mask_folder: Path) -> None:
    paint(mask_folder, split, (10, held), (20, 255))
    with pytest.raises(ValueError, match=rf"{split}/\d.png, hold {held} and 255 alone.*{re.escape(values)}' --data.ignore_index"):
        opened(mask_folder)


def test_masks_to_judge_by_may_hold_one_class_by_chance_where_it_is_said(mask_folder: Path) -> None:
    paint(mask_folder, "val", (10, 1), (20, 255))
    with pytest.raises(ValueError, match=r"if all is right, --data\.mask_values '\[0, 1\]'"):
        opened(mask_folder)
    data = opened(mask_folder, mask_values=[0, 1])
    assert next(iter(data.val_dataloader())).masks[0][:, 0].tolist() == [1] * 10 + [IGNORED] * 20


def test_masks_in_black_and_white_can_be_learned_from(mask_folder: Path) -> None:
    for split in ("train", "val"):
        paint(mask_folder, split, (10, 0), (20, 255))
    data = opened(mask_folder, mask_values=[0, 255], ignore_index=None)
    assert next(iter(data.val_dataloader())).masks[0][:, 0].tolist() == [0] * 10 + [1] * 20


def test_masks_of_one_class_alone_teach_nothing(mask_folder: Path) -> None:
    paint(mask_folder, "train", (30, 1))
    with pytest.raises(ValueError, match=r"the train masks, such as .*, hold the class 'ground' alone: there is nothing to tell"):
        opened(mask_folder)
    paint(mask_folder, "train", (30, 255))
    with pytest.raises(ValueError, match=r"the train masks, such as .*, hold no class at all"):
        opened(mask_folder)


def test_a_number_that_is_no_class_is_found_before_the_training(mask_folder: Path) -> None:
    paint(mask_folder, "train", (10, 0), (10, 128), (10, 255))
    message = r"in the mask .*\.png the class number 128 is in 400 pixels, .*--data\.mask_values; or go on .*on_bad_image skip"
    with pytest.raises(ValueError, match=message):
        opened(mask_folder)


def test_the_masks_that_hold_each_class_are_counted(mask_folder: Path) -> None:
    Image.new("L", (40, 30), 1).save(mask_folder / "masks" / "train" / "0.png")
    data = opened(mask_folder)
    assert [data.counts(split) for split in ("train", "val")] == [[2, 3], [1, 1]]


def test_a_look_at_masks_has_an_end(mask_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(segmentation_data, "_PATIENCE_S", 0.0)
    with caplog.at_level("INFO"):
        data = opened(mask_folder)
    assert data.counts("train") is None
    assert "0 of 3 train masks were looked at, as there were 0 s for it" in caplog.text


def test_what_no_split_uses_is_named_with_its_reason(mask_folder: Path) -> None:
    (mask_folder / "masks" / "train" / "9.png").write_bytes(b"")
    (mask_folder / "images" / "loose.jpg").write_bytes(b"")
    (mask_folder / "images" / "train" / "a.heic").write_bytes(b"")
    (mask_folder / "images" / "train" / ".DS_Store").write_bytes(b"")
    (mask_folder / "images" / "extra").mkdir()
    (mask_folder / "images" / "extra" / "b.jpg").write_bytes(b"")
    (mask_folder / "images" / "extra" / "circle").symlink_to(mask_folder / "images")
    left_out = {
        reason: [str(Path(name).relative_to(mask_folder)) for name in names] for reason, names in opened(mask_folder).left_out
    }
    assert left_out == {
        "images in no split": ["images/extra/b.jpg", "images/loose.jpg"],
        "masks of no image": ["masks/train/9.png"],
        "no images that can be read": ["images/train/a.heic"],
    }


def test_grey_images_have_one_channel(mask_folder: Path) -> None:
    data = opened(mask_folder, in_chans=1)
    assert next(iter(data.train_dataloader())).images.shape == (2, 1, 32, 32)
    assert data.preprocessing.mean == pytest.approx((0.449,), abs=1e-3)


def test_scenes_are_made_where_they_are_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_scenes(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    data = SegmentationData(batch_size=2)
    assert (tmp_path / "runs" / "data" / "scenes" / "classes.txt").is_file()
    data.setup("test")
    assert tuple(data.class_names) == scenes.CLASS_NAMES
    assert next(iter(data.test_dataloader())).images[0].shape == (3, 96, 128)
    assert data.image("test", 0).size == (128, 96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "ade"}, "no data set 'ade': did you mean ade20k"),
        ({"dataset": "folder"}, "the data set 'folder' needs a folder: add --data.root"),
        ({"dataset": "ade20k", "root": ".", "mask_values": [0]}, "mask_values serves the data set folder"),
        ({"dataset": "ade20k"}, "such as --data.root data/ADEChallengeData2016"),
        ({"val_share": 1.0}, "val_share must lie between 0 and 1, got 1.0"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be raise or skip, got 'ignore'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationData(**options)
