import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from flatten_transformer.data.digits import CLASS_NAMES, Digits
from flatten_transformer.data.preprocessing import Preprocessing
from flatten_transformer.tasks.classification.prediction import classify
from flatten_transformer.tasks.model_file import ModelInfo, save_model
from flatten_transformer.tasks.prediction import predict

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
INFO = ModelInfo("flatten_deit_tiny_patch16_224", SIZES, CLASS_NAMES, Preprocessing(16, 1, (0.3,), (0.4,)))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for number, image in enumerate(Digits("test").images[:3]):
        image.save(tmp_path / f"{number}.png")
    return sorted(tmp_path.glob("*.png"))


def test_the_most_probable_classes_come_first(files: list[Path]) -> None:
    model = INFO.build().eval()
    guesses = classify(model, INFO, files, top_k=4)
    images = torch.stack([INFO.preprocessing(Digits("test")[number][0]) for number in range(3)])
    probabilities, classes = model(images).softmax(1).topk(4)
    assert [[guess.class_name for guess in row] for row in guesses] == [[CLASS_NAMES[i] for i in row] for row in classes.tolist()]
    torch.testing.assert_close(torch.tensor([[guess.probability for guess in row] for row in guesses]), probabilities)


def test_no_more_classes_are_named_than_there_are(files: list[Path]) -> None:
    row = classify(INFO.build().eval(), INFO, files[:1], top_k=99)[0]
    assert len(row) == 10
    assert sum(guess.probability for guess in row) == pytest.approx(1)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        classify(INFO.build(), INFO, files, top_k=0)


def test_every_file_gets_a_row_with_names_and_probabilities(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    save_model(tmp_path / "model.safetensors", INFO.build(), INFO)
    predict(files, tmp_path / "model.safetensors", top_k=2)
    printed = capsys.readouterr().out
    assert all(str(file) in printed for file in files)
    assert printed.count("%") == 6


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (7, 30)])
def test_an_image_of_any_mode_and_size_is_classified(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    Image.new(mode, size).save(tmp_path / "image.png")
    assert len(classify(INFO.build().eval(), INFO, [tmp_path / "image.png"])[0]) == 3


def test_the_table_can_be_kept_as_csv(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = INFO.build().eval()
    save_model(tmp_path / "model.safetensors", model, INFO)
    predict([tmp_path], tmp_path / "model.safetensors", top_k=2, csv=tmp_path / "new" / "out.csv")
    with (tmp_path / "new" / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = [(str(path), *guess) for path, row in zip(files, classify(model, INFO, files, 2), strict=True) for guess in row]
    assert [(row["file"], row["class"]) for row in rows] == [(path, name) for path, name, _ in wanted]
    assert [float(row["probability"]) for row in rows] == pytest.approx([p for _, _, p in wanted], abs=1e-6)
    assert "The classes of 3 images are in" in capsys.readouterr().out
    with pytest.raises(ValueError, match="new is a folder: give --csv the name of a file"):
        predict([tmp_path], tmp_path / "model.safetensors", csv=tmp_path / "new")


def test_an_older_csv_stays_whole_when_an_image_cannot_be_read(files: list[Path], tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", INFO.build(), INFO)
    (tmp_path / "out.csv").write_text("older")
    files[2].write_text("not an image")
    with pytest.raises(ValueError, match=r"2\.png is not an image"):
        predict(files, tmp_path / "model.safetensors", csv=tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "older"


def test_brackets_in_names_are_printed_as_they_are(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    info = ModelInfo(INFO.name, SIZES, ("[red]", "[b]"), INFO.preprocessing)
    save_model(tmp_path / "model.safetensors", info.build(), info)
    predict([files[0].rename(tmp_path / "[i].png")], tmp_path / "model.safetensors")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("[red]", "[b]", "[i].png"))
