import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flatten_transformer.data.digits import Digits
from flatten_transformer.tasks.classification.augmentation import Augmentation
from flatten_transformer.tasks.classification.data import ImageData


def first_batch(**arguments: Any) -> tuple[Tensor, Tensor]:
    data = ImageData("digits", **arguments)
    data.setup("fit")
    torch.manual_seed(0)
    random.seed(0)  # timm's crops
    np.random.seed(0)  # timm's augmentation policies
    images, labels, _ = next(iter(data.train_dataloader()))
    return images, labels


@pytest.mark.parametrize(
    "change",
    [
        {"img_size": 16},
        {"in_chans": 3},
        {"mean": (0.0,)},
        {"std": (1.0,)},
        {"batch_size": 5},
        {"augmentation": Augmentation(hflip=1.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_argument_changes_the_training_images(change: dict[str, Any]) -> None:
    plain, changed = first_batch()[0], first_batch(**change)[0]
    assert plain.shape != changed.shape or not torch.equal(plain, changed)


def test_workers_load_images_when_asked_for() -> None:
    data = ImageData("digits", num_workers=1)
    data.setup("validate")
    assert data.val_dataloader().num_workers == 1
    assert len(next(iter(data.val_dataloader()))[0]) == 64


def test_the_same_seed_draws_the_same_training_images() -> None:
    torch.testing.assert_close(first_batch(), first_batch(), rtol=0, atol=0)


def test_an_epoch_holds_every_image_once() -> None:
    data = ImageData("digits", batch_size=100)
    data.setup("fit")
    sizes = [len(labels) for _, labels, _ in data.train_dataloader()]
    assert sizes == [100] * 12 + [57]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_images_are_judged_in_order_and_as_they_are(stage: str) -> None:
    data = ImageData("digits", batch_size=360, augmentation=Augmentation((0.1, 0.2), hflip=1.0, re_prob=1.0), crop_pct=0.75)
    data.setup(stage)
    loader = data.val_dataloader() if stage == "validate" else data.test_dataloader()
    images, labels, _ = next(iter(loader))
    source = Digits("val" if stage == "validate" else "test", size=32)
    assert labels.tolist() == source.labels
    torch.testing.assert_close(images[7], data.preprocessing(source[7][0]), rtol=0, atol=0)


def test_the_default_mean_and_deviation_are_those_of_the_training_images() -> None:
    data = ImageData("digits")
    pixels = torch.stack([data.preprocessing(image) for image in Digits("train", size=32).images])
    assert abs(pixels.mean()) < 0.01
    assert abs(pixels.std() - 1) < 0.01


def test_the_classes_are_counted_and_named() -> None:
    data = ImageData("digits")
    assert data.num_classes == 10
    assert list(data.class_names) == list("0123456789")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": "digit"}, "no data set 'digit': did you mean digits?"),
        ({"dataset": "cats"}, "no data set 'cats': choose one of digits, folder, wds, hfds/<name>, torch/cifar10"),
        ({"dataset": "wds/cats"}, "the data set 'wds/cats' needs a folder: add --data.root"),
        ({"dataset": "tfds/cats"}, "'tfds/cats' is a stream, which cannot be shuffled or resumed: export it to a folder"),
        ({"dataset": "folder/cats"}, "no data set 'folder/cats': did you mean folder?"),
        ({"dataset": "hfds/"}, "no data set 'hfds/': did you mean hfds/<name>"),
        ({"dataset": "torch/cifar11", "root": "."}, "timm knows no data set 'torch/cifar11': did you mean torch/cifar10"),
        ({"dataset": "torch/kmnist", "root": "."}, r"torch/kmnist cannot be opened in \. \(.*\): .* add --data.download true"),
        ({"dataset": "torch/kmnist"}, "the data set 'torch/kmnist' needs a folder: add --data.root"),
        ({"root": "pets"}, "the digits are embedded and take no root, got pets: .* add --data.dataset folder"),
        ({"download": True}, "download serves torchvision's data sets, such as torch/cifar10, not 'digits': leave it out"),
        ({"val_share": 0.0}, "val_share must lie between 0 and 1, got 0.0"),
        ({"crop_pct": 0.0}, "crop_pct must lie in 0 … 1, above 0, got 0.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
    ],
)
def test_an_argument_out_of_range_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**wrong)
