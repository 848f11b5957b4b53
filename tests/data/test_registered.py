import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flatten_transformer.data.by_name import ImageDefaults, OwnSplits, register_data_set, unregister_data_set
from flatten_transformer.tasks.classification.data import ImageData
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.process import without_lightning_noise


def pairs(count: int) -> list[tuple[Any, int]]:
    return [(Image.new("RGB", (9, 7), (20 * number, 50, 90)), number % 2) for number in range(count)]


@pytest.fixture
def _unregistered() -> Iterator[None]:
    yield
    unregister_data_set("mine")


@pytest.mark.usefixtures("_unregistered")
def test_a_registered_data_set_is_one_by_its_name(tmp_path: Path) -> None:
    roots = []

    @register_data_set("Mine", ImageDefaults(16, 3, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)))
    def mine(root: Path | None) -> OwnSplits:
        roots.append(root)
        return OwnSplits(["cat", "dog"], pairs(10))

    data = ImageData("mine", root=tmp_path, val_share=0.4, batch_size=6)
    data.setup("fit")
    images, labels, _ = next(iter(data.train_dataloader()))
    assert (images.shape, sorted(labels.tolist())) == ((6, 3, 16, 16), [0, 0, 0, 1, 1, 1])
    assert (data.class_names, data.preprocessing.mean, roots) == (["cat", "dog"], (0.1, 0.2, 0.3), [tmp_path])
    assert data.contents("train", "val").counts == {"train": [3, 3], "val": [2, 2]}


@pytest.mark.usefixtures("_unregistered")
@pytest.mark.parametrize("name", ["digits/flatten_deit", "finetune", "fashion_mnist/flatten_deit"])
def test_every_classification_recipe_takes_it(name: str, tmp_path: Path) -> None:
    register_data_set("mine")(lambda root: OwnSplits(["cat", "dog"], pairs(4), pairs(2), pairs(2)))
    options = ["--data.dataset", "mine", "--data.num_workers", "0", "--trainer.fast_dev_run", "true"]
    with without_lightning_noise():
        cli = TrainingCLI("fit", ["--config", name, *options, "--trainer.default_root_dir", str(tmp_path)])
    assert cli.model.num_classes == 2
    cli.datamodule.setup("fit")
    assert cli.datamodule.count("val") == 2


@pytest.mark.usefixtures("_unregistered")
def test_images_may_be_files_and_sequences_may_know_their_classes(tmp_path: Path) -> None:
    Image.new("L", (5, 5), 77).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")

    class Lazy:
        labels = np.array([0, 1, 1])

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return (np.zeros((3, 3)) if index == 2 else tmp_path / f"{'ab'[index]}.png"), -1

    val = [(str(tmp_path / "b.png"), torch.tensor(1))]
    register_data_set("mine")(lambda root: OwnSplits(["cat", "dog"], Lazy(), val))
    data = ImageData("mine", batch_size=1)
    assert data._sources["train"].labels == [0, 1, 1]
    image, label = data._sources["train"][0]
    assert (image.getpixel((0, 0)), label) == (77, 0)
    with pytest.raises(ValueError, match=r"image 2 of mine \(train\) is 'ndarray': give one of Pillow's, or the path of a file"):
        data._sources["train"][2]
    data.setup("validate")
    with pytest.raises(ValueError, match=r"b\.png is not an image"):
        next(iter(data.val_dataloader()))


@pytest.mark.usefixtures("_unregistered")
@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (None, "the data set 'mine' gave 'NoneType': return OwnSplits(class_names, train, val, test)"),
        (OwnSplits(["cat"], pairs(2)), "has the classes ['cat']: give two or more, no two alike"),
        (OwnSplits(["cat", "cat"], pairs(2)), "has the classes ['cat', 'cat']"),
        (OwnSplits(["cat", "dog"], []), "the data set 'mine' has no training image"),
        (OwnSplits(["cat", "dog"], [(None, 2)]), "image 0 of mine (train) is of class 2, but the classes are 0 … 1"),
        (OwnSplits(["cat", "dog"], pairs(2), [(None, "cat")]), "image 0 of mine (val) is of class 'cat'"),
    ],
    ids=range(6),
)
def test_what_is_no_data_set_is_refused_in_one_line(splits: Any, message: str) -> None:
    register_data_set("mine")(lambda root: splits)
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageData("mine")


@pytest.mark.usefixtures("_unregistered")
def test_a_name_is_given_once_and_to_the_same_function_again() -> None:
    def mine(root: Path | None) -> OwnSplits:
        return OwnSplits([], [])

    def other(root: Path | None) -> OwnSplits:
        return OwnSplits([], [])

    register_data_set("mine")(register_data_set("mine")(mine))
    for name in ("mine", "MINE", "digits", "folder", "tfds"):
        with pytest.raises(ValueError, match=rf"the data set '{name}' is there already: choose another name"):
            register_data_set(name)(other)
    for name in ("", "my/data", " mine"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be the name of a data set"):
            register_data_set(name)
    with pytest.raises(ValueError, match=r"no data set 'mime' is registered: did you mean mine\?"):
        unregister_data_set("mime")
    with pytest.raises(ValueError, match=r"no data set 'mime': did you mean mine\?"):
        ImageData("mime")
