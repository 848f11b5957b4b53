import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flatten_transformer.tasks.classification.augmentation import Augmentation
from flatten_transformer.tasks.classification.preprocessing import Preprocessing

COLOUR = Preprocessing(32, 3, (0.5,) * 3, (0.25,) * 3)
WHOLE = Augmentation((1.0, 1.0), (1.0, 1.0))
PAPER = Augmentation((0.08, 1.0), (3 / 4, 4 / 3), 0.5, "rand-m9-mstd0.5-inc1", 0.4, 0.25, "pixel")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(values).resize((48, 48), Image.Resampling.BICUBIC)


def augmented(augmentation: Augmentation, image: Image.Image, preprocessing: Preprocessing = COLOUR) -> Tensor:
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    transform = augmentation.transform(preprocessing)
    return torch.stack([transform(image) for _ in range(8)])


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.2, 0.3)},
        {"ratio": (0.5, 0.6)},
        {"hflip": 1.0},
        {"auto_augment": "rand-m9-n2"},
        {"color_jitter": 0.4},
        {"re_prob": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_every_argument_changes_the_images(change: dict[str, Any], in_chans: int, photo: Image.Image) -> None:
    preprocessing = Preprocessing(32, in_chans, (0.5,) * in_chans, (0.25,) * in_chans)
    image = photo.convert("L") if in_chans == 1 else photo
    plain = augmented(WHOLE, image, preprocessing)
    assert not torch.allclose(plain, augmented(replace(WHOLE, **change), image, preprocessing))


def test_nothing_changes_where_nothing_is_asked_for(photo: Image.Image) -> None:
    plain = augmented(WHOLE, photo)
    torch.testing.assert_close(plain, COLOUR(photo).expand_as(plain), rtol=0, atol=0)


@pytest.mark.parametrize(("mode", "values"), [("const", 1), ("rand", 3), ("pixel", 100)])
def test_the_erased_rectangle_is_filled_as_told(mode: Any, values: int, photo: Image.Image) -> None:
    plain = augmented(WHOLE, photo)
    erased = augmented(replace(WHOLE, re_prob=1.0, re_mode=mode), photo)[0]
    changed = erased[erased != plain[0]]
    assert 0.02 < len(changed) / erased.numel() < 0.4
    assert len(changed.unique()) == values if values <= 3 else len(changed.unique()) > values


def test_a_quarter_of_the_images_is_erased_when_asked_for() -> None:
    grey = Image.new("RGB", (32, 32), (200, 200, 200))
    random.seed(0)
    transform = replace(WHOLE, re_prob=0.25).transform(COLOUR)
    erased = sum(len(transform(grey).unique()) > 1 for _ in range(400))
    assert 75 <= erased <= 125  # 100 ± 2.9 deviations


def test_the_papers_augmentation_never_gives_the_same_image_twice(photo: Image.Image) -> None:
    images = augmented(PAPER, photo)
    assert images.isfinite().all()
    assert all(not torch.equal(images[i], images[j]) for i in range(8) for j in range(i))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": (1.0, 0.5)}, "scale must hold two positive numbers, the smaller first"),
        ({"ratio": (0.0, 1.0)}, "ratio must hold two positive numbers, the smaller first"),
        ({"hflip": 2.0}, "hflip must lie in 0 … 1, got 2.0"),
        ({"re_prob": -0.5}, "re_prob must lie in 0 … 1, got -0.5"),
        ({"re_mode": "blur"}, "re_mode must be one of const, rand, pixel, got 'blur'"),
        ({"color_jitter": -1.0}, "color_jitter must be at least 0, got -1.0"),
        ({"auto_augment": "strong"}, "timm knows no augmentation 'strong'"),
    ],
)
def test_an_argument_out_of_range_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**wrong).transform(COLOUR)
