import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from flatten_transformer.data import torchvision_images
from flatten_transformer.data.torchvision_images import TorchvisionImages, open_torchvision
from flatten_transformer.tasks.classification.data import ImageData
from tests.images import write_packed

INSTALLED = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize(("name", "class_name"), [("fashion_mnist", "Pullover"), ("mnist", "2 - two"), ("kmnist", "su")])
def test_the_published_files_are_read_as_they_are(name: str, class_name: str, tmp_path: Path) -> None:
    found = open_torchvision(f"torch/{name}", write_packed(tmp_path, train=30, test=11), download=False)
    assert found.class_names[2] == class_name
    assert found.val is None
    assert found.test is not None
    assert (len(found.train), len(found.test)) == (30, 11)
    image, label = found.train[13]
    assert (image.size, image.mode, label) == ((28, 28), "L", 3)
    pixels = np.asarray(image)
    assert pixels[0, 0] == 255
    assert (pixels.reshape(-1)[1:] == 60).all()
    assert found.test.name(4) == f"image 4 of {tmp_path}/t10k"


def test_what_the_system_has_installed_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torchvision_images._INSTALLED, "torch/fashion_mnist", write_packed(tmp_path, train=40, test=10))
    data = ImageData("torch/fashion_mnist", val_share=0.25, batch_size=5)
    data.setup("fit")
    images, labels, _ = next(iter(data.val_dataloader()))
    assert images.shape == (5, 1, 28, 28)
    assert len(labels.unique()) == 5


def test_what_is_not_installed_is_said_with_the_package_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torchvision_images._INSTALLED, "torch/fashion_mnist", tmp_path / "none")
    with pytest.raises(ValueError, match=r"needs a folder: add --data.root, .*, or install the package dataset-fashion-mnist"):
        ImageData("torch/fashion_mnist")


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("keep", [0, 5, 60])
def test_a_damaged_file_is_refused_by_its_name(keep: int, tmp_path: Path) -> None:
    cut(write_packed(tmp_path, train=30, test=10) / "train-images-idx3-ubyte.gz", keep)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged \(.*\): copy the data set anew"):
        open_torchvision("torch/mnist", tmp_path, download=False)


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    (write_packed(tmp_path, train=30, test=10) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"no file .*t10k-labels-idx1-ubyte\.gz: copy the data set anew"):
        open_torchvision("torch/mnist", tmp_path, download=False)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one, other = write_packed(tmp_path / "a", train=30, test=10), write_packed(tmp_path / "b", train=20, test=10)
    (other / "train-labels-idx1-ubyte.gz").replace(one / "train-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match="holds 30 images train, but 20 labels: copy it anew"):
        open_torchvision("torch/mnist", one, download=False)


@pytest.mark.skipif(not INSTALLED.is_dir(), reason=f"the package dataset-fashion-mnist is not installed: no {INSTALLED}")
def test_the_real_fashion_mnist_is_as_it_was_published() -> None:
    data = ImageData("torch/fashion_mnist", val_share=0.1, batch_size=100)
    for stage in ("fit", "test"):
        data.setup(stage)
    sources: list[Any] = [data._datasets[split].source for split in ("train", "val", "test")]
    train, val, test = sources
    assert (len(train), len(val), len(test)) == (54_000, 6_000, 10_000)
    assert data.class_names[9] == "Ankle boot"
    assert np.bincount(test.labels).tolist() == [1000] * 10
    pixels = np.stack([np.asarray(train[index][0]) for index in range(len(train))]) / 255
    assert pixels.mean() == pytest.approx(data.preprocessing.mean[0], abs=0.001)
    assert pixels.std() == pytest.approx(data.preprocessing.std[0], abs=0.001)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100), "it says that it holds 79,228,162,458,924,105,385,300,197,375 bytes"),
        (b"\0\0\x08\x01\0\0\0\x05\x00\x01\x02\x03\xc8", "has a label 200 in train, but the classes are 0 … 9"),
    ],
)
def test_a_packed_file_that_asks_for_too_much_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    root = write_packed(tmp_path, 5, 5)
    kind = "images-idx3" if content[3] == 3 else "labels-idx1"
    (root / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        ImageData("torch/mnist", root=root)


def test_image_files_of_torchvision_are_opened_by_our_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    monkeypatch.setattr(
        "flatten_transformer.data.torchvision_images.create_dataset", lambda name, **options: ImageFolder(options["root"])
    )
    with pytest.raises(ValueError, match=r"a\.png is not an image that Pillow can read"):
        TorchvisionImages("torch/imagenet", tmp_path, "train", download=False)[0]
