import csv
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flatten_transformer.cli import main
from flatten_transformer.commands.predict import predict
from flatten_transformer.data.digits import CLASS_NAMES, Digits
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.classification import predict as prediction
from flatten_transformer.tasks.classification.predict import classify
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, save_model
from flatten_transformer.utils.stopping import UnfinishedError

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
    with pytest.raises(ValueError, match=r"2\.png is not an image.*; or go on without it: --on_bad_image skip"):
        predict(files, tmp_path / "model.safetensors", csv=tmp_path / "out.csv", on_bad_image="raise")
    assert (tmp_path / "out.csv").read_text() == "older"
    assert len((tmp_path / "out.csv.part").read_text().splitlines()) == 1 + 2 * 3


def test_brackets_in_names_are_printed_as_they_are(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    info = ModelInfo(INFO.name, SIZES, ("[red]", "[b]"), INFO.preprocessing)
    save_model(tmp_path / "model.safetensors", info.build(), info)
    predict([files[0].rename(tmp_path / "[i].png")], tmp_path / "model.safetensors")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("[red]", "[b]", "[i].png"))


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    save_model(tmp_path / "model.safetensors", INFO.build(), INFO)
    return tmp_path / "model.safetensors"


def interrupt(monkeypatch: pytest.MonkeyPatch, stop: Any, at: str = "2.png") -> None:
    def reading(path: Path) -> Image.Image:
        if path.name == at:
            stop()
        return read_image(path)

    monkeypatch.setattr(prediction, "read_image", reading)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


@pytest.fixture
def _heeded_hangup() -> Iterator[None]:
    """Let a hangup end this process, also where it was started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stop", "status", "message"),
    [
        (press_ctrl_c, 130, "interrupted"),
        (lambda: signal.raise_signal(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (lambda: signal.raise_signal(signal.SIGHUP), 129, "stopped by SIGHUP"),
    ],
)
@pytest.mark.usefixtures("_heeded_hangup")
def test_what_was_found_before_a_stop_stays(
    stop: Any,
    status: int,
    message: str,
    files: list[Path],
    model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(monkeypatch, stop)
    table = tmp_path / "out.csv"
    command = ["predict", *map(str, files), "--checkpoint", str(model_file)]
    assert main([*command, "--csv", str(table)]) == status
    assert [row[0] for row in rows(table)] == [str(file) for file in files[:2] for _ in range(3)]
    printed = capsys.readouterr()
    message += ": what is finished is kept; the same command begins with the first image again"
    assert printed.out == f"The classes of 2 images are in {table}\n"
    assert printed.err == f"flatten: {message}\n"
    monkeypatch.setenv("COLUMNS", "300")
    assert main(command) == status
    printed = capsys.readouterr()
    assert [str(file) in printed.out for file in files] == [True, True, False]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_row_is_there_before_the_next_image_is_read(
    files: list[Path], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    interrupt(monkeypatch, lambda: seen.append(len(rows(tmp_path / "out.csv"))))
    predict(files, model_file, top_k=1, csv=tmp_path / "out.csv")
    assert seen == [2]
    assert len(rows(tmp_path / "out.csv")) == 3


@pytest.mark.parametrize("bad", ["0.png", "1.png", "2.png"])
def test_the_others_go_on_without_a_bad_image_and_the_status_says_so(
    bad: str, files: list[Path], model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / bad).write_text("not an image")
    table = tmp_path / "out.csv"
    assert main(["predict", str(tmp_path), "--csv", str(table), "--checkpoint", str(model_file)]) == 1
    assert [row[0] for row in rows(table)] == [str(file) for file in files if file.name != bad for _ in range(3)]
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"flatten: skipped: {tmp_path / bad} is not an image")
    assert last.startswith(f"flatten: 1 of 3 images skipped: {tmp_path / bad} is not an image")
    with pytest.raises(UnfinishedError, match="1 of 3 images skipped"):
        predict([tmp_path], model_file)


def test_where_no_image_can_be_used_nothing_is_written(files: list[Path], model_file: Path, tmp_path: Path) -> None:
    for file in files:
        file.write_text("not an image")
    with pytest.raises(ValueError, match=r"none of 3 images can be used; the first: .*0\.png is not an image"):
        predict(files, model_file, csv=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_file_is_said_before_any_work(files: list[Path], model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image .*missing\.png: check the path"):
        predict([*files, tmp_path / "missing.png"], model_file, csv=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", ["0.png", "model.safetensors", "link", "hard"])
@pytest.mark.parametrize("given", ["file", "folder"])
def test_no_table_takes_the_place_of_what_is_read(
    name: str, given: str, files: list[Path], model_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(model_file)
    (tmp_path / "hard").hardlink_to(files[2])
    before = {path: path.read_bytes() for path in (*files, model_file)}
    with pytest.raises(ValueError, match="is read by this command, which would write over it: choose another name"):
        predict(files if given == "file" else [tmp_path], model_file, csv=tmp_path / name)
    assert {path: path.read_bytes() for path in before} == before


def test_names_reach_tables_and_terminals_safely(
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    info = ModelInfo(INFO.name, SIZES, ("=cmd|x", "\x1b[31m[red]:cat:\n\udce9"), INFO.preprocessing)
    save_model(tmp_path / "model.safetensors", info.build(), info)
    names = ["=1.png", "\x1b[2J\n.png", os.fsdecode(b"caf\xe9.png"), "n" * 251 + ".png"]
    for name in names:
        (tmp_path / name).write_bytes(files[0].read_bytes())
    predict([Path(name) for name in names], Path("model.safetensors"), csv=Path("out.csv"))
    assert [(name, kind) for name, kind, _ in rows(Path("out.csv"))[::2]] == [
        (name, rows(Path("out.csv"))[0][1]) for name in ("./=1.png", "\x1b[2J\n.png", r"caf\udce9.png", names[3])
    ]
    assert {kind for _, kind, _ in rows(Path("out.csv"))} == {"'=cmd|x", "\x1b[31m[red]:cat:\n\\udce9"}
    assert main(["predict", *names, "--checkpoint", "model.safetensors"]) == 0
    assert main(["predict", "\x1b[2Jmissing", "--checkpoint", "model.safetensors"]) == 2
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    for shown in (r"\x1b[2J\n.png", r"caf\udce9.png", r"\x1b[31m[red]:cat:\n\udce9 ("):
        assert shown in printed.out
    assert r"no image \x1b[2Jmissing" in printed.err
