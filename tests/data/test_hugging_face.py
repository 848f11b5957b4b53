import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flatten_transformer.data.hugging_face import open_hugging_face
from flatten_transformer.tasks.classification.data import ImageData

datasets = pytest.importorskip("datasets", reason="the library datasets is not installed: pip install '.[hub]'")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(folder: Path, labels: dict[str, list[int]], names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write a data set of grey images, 10 · index grey, as files that `datasets` reads."""
    folder.mkdir()
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))})
    for split, kinds in labels.items():
        images = [Image.new("L", (9, 7), 10 * index) for index in range(len(kinds))]
        rows: Any = datasets.Dataset.from_dict({"img": images, "kind": kinds}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


def test_images_and_classes_come_from_their_columns(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", {"train": [0, 1, 1], "validation": [1, 0], "test": [0]})
    found = open_hugging_face(str(root), tmp_path / "cache")
    assert found.class_names == ["cat", "dog"]
    assert found.val is not None
    assert found.test is not None
    assert [len(split) for split in (found.train, found.val, found.test)] == [3, 2, 1]
    image, label = found.train[2]
    assert (image.getpixel((0, 0)), label) == (20, 1)
    assert found.train.name(2).startswith(f"image 2 of hfds/{root} (train)")
    assert (tmp_path / "cache").is_dir()


def test_what_it_lacks_is_taken_from_what_it_has(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", {"train": [0, 1] * 5, "test": [-1, -1, -1]})  # the labels of the test are withheld
    data = ImageData(f"hfds/{root}", root=tmp_path / "cache", img_size=8, batch_size=4)
    data.setup("fit")
    data.setup("test")
    images, labels, _ = next(iter(data.val_dataloader()))
    assert images.shape == (2, 3, 8, 8)
    assert sorted(labels.tolist()) == [0, 1]
    assert len(data.test_dataloader().dataset) == 2  # type: ignore[arg-type]
    assert list(data.class_names) == ["cat", "dog"]


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    for number, name in enumerate(("cat", "dog")):
        (folder / "train" / name).mkdir(parents=True)
        Image.new("L", (9, 7), number).save(folder / "train" / name / "1.png")
    found = open_hugging_face(str(folder), tmp_path / "cache")
    file = folder / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"image 1 of hfds/.*dog/1\.png\) (cannot be read|is not an image)"):
        found.train[1]


def test_a_data_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hfds/nobody/nothing cannot be opened \(.*\): check its name"):
        open_hugging_face("nobody/nothing", tmp_path)


def test_a_data_set_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "words" / "train.parquet")
    with pytest.raises(ValueError, match=r"hfds/.*words has no column of the kind Image, only text"):
        open_hugging_face(str(tmp_path / "words"), tmp_path / "cache")


def test_a_data_set_without_training_images_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", {"test": [0, 1]})
    with pytest.raises(ValueError, match=r"hfds/.*pets has no split train, only test: choose another data set"):
        open_hugging_face(str(root), tmp_path / "cache")


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hfds/pets needs the library datasets: pip install 'flatten-transformer\[hub\]'"):
        open_hugging_face("pets", None)


def test_splits_of_other_names_are_understood_and_the_rest_is_told(tmp_path: Path) -> None:
    root = write(tmp_path / "pets", {"train": [0, -1, 1], "eval": [1, 0], "extra": [0]})
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    found = {
        split: datasets.Dataset.from_parquet(str(root / f"{split}.parquet"), features=features, cache_dir=str(tmp_path))
        for split in ("train", "eval", "extra")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda name, cache_dir: datasets.DatasetDict(found))
        splits = open_hugging_face("pets", None)
    assert [label for _, label in (splits.train[0], splits.train[1])] == [0, 1]
    assert (len(splits.train), len(splits.val or ()), splits.test) == (2, 2, None)
    assert splits.left_out == [("split that is not used", ["extra"]), ("without a label, in train", ["image 1"])]
