from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.datasets import CIFAR10, FashionMNIST

from flatten_transformer.tasks.classification.augmentation import Augmentation
from flatten_transformer.tasks.classification.data import ImageData, fill_in

DrawFolder = Callable[[Mapping[str, int]], Path]


@pytest.mark.parametrize("dataset", ["folder", "torch/cifar10"])
def test_colour_images_are_those_of_imagenet_in_size_and_numbers(dataset: str) -> None:
    filled = fill_in(dataset, None, None, None, None)
    assert (filled.img_size, filled.in_chans) == (224, 3)
    assert (filled.mean, filled.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


@pytest.mark.parametrize(("dataset", "size"), [("digits", 32), ("torch/mnist", 28), ("torch/fashion_mnist", 28)])
def test_small_grey_images_have_their_own_size_and_numbers(dataset: str, size: int) -> None:
    filled = fill_in(dataset, None, None, None, None)
    assert (filled.img_size, filled.in_chans, len(filled.mean), len(filled.std)) == (size, 1, 1, 1)


def test_a_number_that_is_given_comes_before_that_of_the_data_set() -> None:
    assert fill_in("folder", 32, None, None, None).img_size == 32
    assert fill_in("folder", None, 1, None, None).mean == pytest.approx((0.449,))
    assert fill_in("digits", None, 3, None, None).std == (0.349,) * 3
    assert fill_in("digits", None, None, (0.5,), None).mean == (0.5,)
    assert fill_in("digits", None, None, None, (0.5,)).std == (0.5,)


def sizes(data: ImageData) -> list[int]:
    data.setup("fit")
    data.setup("test")
    return [len(loader.dataset) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({"cat": 10, "dog": 5}, [12, 3, 3]),
        ({"cat": 10, "dog": 5, "test/dog": 2}, [12, 3, 2]),
        ({"train/cat": 10, "train/dog": 5}, [12, 3, 3]),
        ({"train/cat": 10, "train/dog": 5, "val/dog": 4}, [15, 4, 4]),
        ({"train/cat": 10, "train/dog": 5, "val/dog": 4, "test/cat": 6}, [15, 4, 6]),
    ],
    ids=["plain", "plain with test", "train", "train and val", "all"],
)
def test_what_a_folder_lacks_is_taken_from_what_it_has(
    counts: dict[str, int], wanted: list[int], draw_folder: DrawFolder
) -> None:
    assert sizes(ImageData("folder", root=draw_folder(counts), img_size=8)) == wanted


def test_the_share_of_validation_images_can_be_chosen(draw_folder: DrawFolder) -> None:
    assert sizes(ImageData("folder", root=draw_folder({"cat": 10, "dog": 10}), val_share=0.4)) == [12, 8, 8]


def test_images_of_a_folder_become_colour_batches_with_their_classes(draw_folder: DrawFolder) -> None:
    root = draw_folder({"dog": 3, "cat": 3})
    data = ImageData("folder", root=str(root), img_size=8, batch_size=8, augmentation=Augmentation((1.0, 1.0), (1.5, 1.5)))
    data.setup("fit")
    images, labels, _ = next(iter(data.train_dataloader()))
    assert (list(data.class_names), data.num_classes, data.in_chans) == (["cat", "dog"], 2, 3)
    assert images.shape == (4, 3, 8, 8)
    green = images[:, 1].mean((1, 2)) * data.preprocessing.std[1] + data.preprocessing.mean[1]
    torch.testing.assert_close(green * 255, 40.0 * (labels == 0), rtol=0, atol=1e-3)  # the cats were drawn second


class _Drawn:
    """Stands in for a download: ten images a class, without a file."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if not (download or Path(root, "data").exists()):
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        Path(root, "data").touch()
        count = 100 if train else 30
        self.targets: Any = torch.arange(count) % 10
        self.data: Any = torch.zeros(count, 28, 28, dtype=torch.uint8)


def draw_fashion(self: Any, root: str, train: bool = True, download: bool = False) -> None:
    vars(self).update(vars(_Drawn(root, train, download)), transform=None, target_transform=None)


def draw_cifar(self: Any, root: str, train: bool = True, download: bool = False) -> None:
    drawn = _Drawn(root, train, download)
    data = np.zeros((len(drawn.targets), 32, 32, 3), np.uint8)
    classes = [f"class {number}" for number in range(10)]
    vars(self).update(data=data, targets=drawn.targets.tolist(), classes=classes, transform=None, target_transform=None)


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMNIST, "__init__", draw_fashion)
    monkeypatch.setattr(CIFAR10, "__init__", draw_cifar)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("dataset", "shape", "class_name"),
    [("torch/fashion_mnist", (1, 28, 28), "Pullover"), ("torch/CIFAR10", (3, 224, 224), "class 2")],
)
def test_torchvision_keeps_its_test_images_for_the_test(
    dataset: str, shape: tuple[int, int, int], class_name: str, tmp_path: Path
) -> None:
    data = ImageData(dataset, root=tmp_path, download=True, val_share=0.1, batch_size=4)
    assert sizes(data) == [90, 10, 30]
    assert data.class_names[2] == class_name
    images, _, _ = next(iter(data.val_dataloader()))
    assert images.shape == (4, *shape)
    assert sorted(label for _, batch, _ in data.val_dataloader() for label in batch.tolist()) == list(range(10))


@pytest.mark.usefixtures("_no_network")
def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torch/fashion_mnist cannot be opened in .* add --data\.download true"):
        ImageData("torch/fashion_mnist", root=tmp_path)
    ImageData("torch/fashion_mnist", root=tmp_path, download=True)
    ImageData("torch/fashion_mnist", root=tmp_path)
