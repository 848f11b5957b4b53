import numpy as np
import pytest
from sklearn.datasets import load_digits

from flatten_transformer.data.digits import CLASS_NAMES, Digits, split_indices
from flatten_transformer.data.source import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def test_the_splits_share_no_image_and_leave_none_out() -> None:
    splits = split_indices(load_digits().target)
    assert sorted(index for split in SPLITS for index in splits[split]) == list(range(1797))
    assert [len(splits[split]) for split in SPLITS] == [1257, 180, 360]


def test_the_splits_are_the_same_in_every_run() -> None:
    splits = split_indices(load_digits().target)
    # pinned: a model trained by an earlier version must never be tested on its training images
    assert splits["test"][:8] == [1496, 188, 705, 820, 413, 744, 1466, 500]
    assert sum(splits["test"]) == 337944


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_has_its_share_of_every_split(split: Split) -> None:
    shares = np.bincount(Digits(split).labels) / len(Digits(split))
    whole = np.bincount(load_digits().target) / 1797
    assert len(shares) == len(CLASS_NAMES)
    assert abs(shares - whole).max() < 0.006


def test_the_images_are_the_originals_in_eight_bits() -> None:
    data = load_digits()
    first = split_indices(data.target)["val"][0]
    image, label = Digits("val")[0]
    np.testing.assert_array_equal(np.asarray(image), np.rint(data.images[first] * 255 / 16))
    assert CLASS_NAMES[label] == str(data.target[first])
