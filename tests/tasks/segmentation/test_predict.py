from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from flatten_transformer.data.mask_file import read_mask
from flatten_transformer.data.mask_folder import open_mask_folder
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.model_file import ModelInfo, load_model, save_model
from flatten_transformer.tasks.segmentation.predict import predict_files, segment
from flatten_transformer.tasks.segmentation.preprocessing import SegmentationPreprocessing
from flatten_transformer.utils.stopping import UnfinishedError
from tests.tasks.segmentation.conftest import TINY

NAMES = ("sky", "ground", "water")
PLAIN = SegmentationPreprocessing(3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
INFO = ModelInfo("semantic_fpn", TINY, NAMES, PLAIN, "segment")


class Brightest(nn.Module):
    """Says for each pixel which of its three channels is the brightest."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def stripes(size: tuple[int, int] = (30, 20)) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for channel in range(3):
        pixels[:, channel * size[0] // 3 : (channel + 1) * size[0] // 3, channel] = 255
    return Image.fromarray(pixels)


def with_preprocessing(**changes: Any) -> ModelInfo:
    return ModelInfo(INFO.name, TINY, NAMES, SegmentationPreprocessing(3, (0.0,) * 3, (1.0,) * 3, **changes), "segment")


@pytest.mark.parametrize("changes", [{}, {"short_side": 60}, {"window": 10, "stride": 7}])
def test_the_classes_come_in_the_size_of_the_image(changes: dict[str, Any]) -> None:
    classes = segment(Brightest(), with_preprocessing(**changes), [stripes()])[0]
    assert classes.shape == (20, 30)
    assert [classes[:, column].unique().tolist() for column in (2, 14, 27)] == [[0], [1], [2]]


def test_masks_can_be_learned_from_again(tmp_path: Path) -> None:
    folder = tmp_path / "found"
    stripes().save(tmp_path / "a.png")
    predict_files(Brightest(), INFO, [tmp_path / "a.png"], folder)
    assert read_image(folder / "masks" / "a.png").mode == "P"
    assert [read_mask(folder / "masks" / "a.png")[0, column] for column in (2, 14, 27)] == [0, 1, 2]
    for kind, file in (("images", tmp_path / "a.png"), ("masks", folder / "masks" / "a.png")):
        for split in ("train", "val"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
            (tmp_path / "data" / kind / split / "a.png").write_bytes(file.read_bytes())
    (tmp_path / "data" / "classes.txt").write_bytes((folder / "classes.txt").read_bytes())
    class_names, splits, *_ = open_mask_folder(tmp_path / "data")
    assert tuple(class_names) == NAMES
    assert splits["train"][0][1].unique().tolist() == [0, 1, 2]


def test_a_model_that_was_written_and_read_sees_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = INFO.build().eval()
    save_model(tmp_path / "model.safetensors", model, INFO)
    read, info = load_model(tmp_path / "model.safetensors")
    image = stripes((50, 40))
    assert info.task == "segment"
    assert info.preprocessing == PLAIN
    torch.testing.assert_close(read(PLAIN(image)[None]), model(PLAIN(image)[None]), rtol=0, atol=0)
    assert torch.equal(segment(read, info, [image])[0], segment(model, INFO, [image])[0])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "I;16", "1"])
@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_an_image_of_any_mode_and_size_is_segmented(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    file = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    Image.new(mode, size).save(file)
    predict_files(INFO.build().eval(), INFO, [file], tmp_path / "found")
    assert read_image(tmp_path / "found" / "masks" / "image.png").size == size
    assert read_image(tmp_path / "found" / "overlays" / "image.png").width > size[0]


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    stripes((300, 200)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        predict_files(Brightest(), INFO, [tmp_path / "a.png"], tmp_path / "found")


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    files = [tmp_path / "one" / "a.png", tmp_path / "two" / "a.jpg"]
    for file in files:
        file.parent.mkdir()
        stripes().save(file)
    predict_files(Brightest(), INFO, files, tmp_path / "found")
    assert sorted(path.name for path in (tmp_path / "found" / "masks").iterdir()) == ["a-2.png", "a.png"]
    with pytest.raises(ValueError, match="its picture would take its place"):
        predict_files(Brightest(), INFO, [tmp_path / "found" / "masks" / "a.png"], tmp_path / "found")


@pytest.mark.parametrize("on_bad_image", ["skip", "raise"])
def test_what_was_found_on_other_images_stays(on_bad_image: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for file in files:
        stripes().save(file)
    files[1].write_text("not an image")
    with pytest.raises(ValueError, match=r"b\.png is not an image") as caught:
        predict_files(Brightest(), INFO, files, tmp_path / "found", on_bad_image)
    assert isinstance(caught.value, UnfinishedError) == (on_bad_image == "skip")
    wanted = ["a.png", "c.png"] if on_bad_image == "skip" else ["a.png"]
    for kind in ("masks", "overlays"):
        assert sorted(path.name for path in (tmp_path / "found" / kind).iterdir()) == wanted
    assert f"overlays of {len(wanted)} image" in capsys.readouterr().out


def test_nothing_is_written_where_no_image_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"a\.png is not an image"):
        predict_files(Brightest(), INFO, [tmp_path / "a.png"], tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_each_class_has_one_line_whatever_its_name(tmp_path: Path) -> None:
    info = ModelInfo(INFO.name, TINY, ("sky", "a\nb\x1b", "\udce9"), PLAIN, "segment")
    stripes().save(tmp_path / "a.png")
    predict_files(Brightest(), info, [tmp_path / "a.png"], tmp_path / "found")
    assert (tmp_path / "found" / "classes.txt").read_text().splitlines() == ["sky", r"a\nb\x1b", r"\udce9"]


def test_the_longest_name_still_gets_its_pictures(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 251 + ".png")
    stripes().save(file)
    twins = [tmp_path / "A.png", tmp_path / "folder" / "a.png"]  # one name where capitals do not count
    twins[1].parent.mkdir()
    for twin in twins:
        stripes().save(twin)
    predict_files(Brightest(), INFO, [file, *twins], tmp_path / "found")
    assert {path.name[:3] for path in (tmp_path / "found" / "masks").iterdir()} == {"nnn", "A.p", "a-2"}


def test_the_model_and_the_names_of_classes_are_not_written_over(tmp_path: Path) -> None:
    stripes().save(tmp_path / "a.png")
    (tmp_path / "classes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"classes\.txt is read by this command"):
        predict_files(Brightest(), INFO, [tmp_path / "a.png"], tmp_path, inputs=[tmp_path / "classes.txt"])
    assert (tmp_path / "classes.txt").read_text() == "mine"
