"""`flatten analyze` from end to end on tiny models: a report that needs nothing else, numbers, pictures, a user's errors."""

import base64
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from flatten_transformer import cli
from flatten_transformer.analysis.models import AnalyzedModel, load_models
from flatten_transformer.analysis.study import Options, Study, study_model
from flatten_transformer.commands import analyze
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, save_model
from flatten_transformer.training import cli as training  # noqa: F401  # Lightning logs to the stderr of its first import

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
Flatten = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image, and a focused and a softmax model, as trainings leave them."""
    monkeypatch.chdir(tmp_path)
    image = Image.new("L", (20, 16))
    image.putpixel((15, 3), 255)
    image.save("image.png")
    for name, letter in (("focused", "L"), ("softmax", "S")):
        info = ModelInfo(
            "flatten_deit_tiny_patch16_224", {**SIZES, "attn_types": letter}, ("a", "b"), Preprocessing(16, 1, (0.3,), (0.4,))
        )
        save_model(Path(f"runs/{name}/version_0/checkpoints/model.safetensors"), info.build(), info)
    Path("notes.txt").write_text("no image, no checkpoint")
    save_file({"weight": torch.zeros(1)}, "resnet.safetensors")


@pytest.fixture
def flatten(capfd: pytest.CaptureFixture[str]) -> Flatten:
    def run(*argv: str) -> tuple[int, str, str]:
        status = cli.main(argv)
        out, err = capfd.readouterr()
        progress = re.compile(r"flatten: \d of \d: analyzing .*\n")
        assert len(progress.findall(err)) <= 2
        return status, out, progress.sub("", err)

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are files with a name and a caption, and nothing in them."""
    for name in ("draw_ranks", "draw_sharpness", "draw_queries", "draw_matrix", "draw_angles"):
        monkeypatch.setattr(analyze, name, lambda *_, **__: b"")


FOCUSED, SOFTMAX = (f"runs/{name}/version_0/checkpoints/model.safetensors" for name in ("focused", "softmax"))
ANALYZE = f"analyze image.png --checkpoint {FOCUSED}"


def numbers(folder: str = "runs/analysis") -> Any:
    return json.loads((Path(folder) / "numbers.json").read_text())


def test_one_model_gives_numbers_pictures_and_a_report_that_needs_nothing_but_itself(flatten: Flatten) -> None:
    status, out, err = flatten(*ANALYZE.split())
    assert (status, err) == (0, "")
    assert "Report: runs/analysis/report.html" in out
    files = {path.name for path in Path("runs/analysis").iterdir()}
    pictures = {f"{name}.png" for name in ("angles", "attention", "matrix", "rank", "restored", "sharpness")}
    assert files == {"report.html", "numbers.json", *pictures}
    model = numbers()["models"][0]
    assert model["query"] == [0, 3]  # the token with the ink, of the square in the middle
    assert [layer["name"] for layer in model["layers"]] == ["blocks.0.attn", "blocks.1.attn"]
    for layer in model["layers"]:
        assert [head["attention"]["rank"] <= 8 for head in layer["heads"]] == [True, True]
        assert [head["restored"]["rank"] for head in layer["heads"]] == [16, 16]
    html = Path("runs/analysis/report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 6
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))) as image:
            assert min(image.size) > 250
            assert len(image.convert("RGB").getcolors(maxcolors=2**24) or ()) > 20
    assert "http" not in html
    assert "<td>blocks.1.attn</td>" in html


@pytest.mark.usefixtures("undrawn")
def test_several_models_stand_side_by_side(flatten: Flatten) -> None:
    status, _, err = flatten("analyze", "image.png", "--checkpoint", f"{FOCUSED},{SOFTMAX}")
    assert (status, err) == (0, "")
    assert [model["label"] for model in numbers()["models"]] == ["focused/version_0", "softmax/version_0"]
    assert Path("runs/analysis/focused_version_0_restored.png").exists()
    assert not Path("runs/analysis/softmax_version_0_restored.png").exists()


def test_models_are_told_apart_by_what_differs() -> None:
    deit, files = "flatten_deit_tiny_patch16_224", f"{FOCUSED},./{FOCUSED}"

    def labels(**named: Any) -> list[str]:
        return [model.label for model in load_models(Path("image.png"), **named)]

    assert labels(model=deit, attention="relu,hydra") == ["relu", "hydra"]
    assert labels(model=f"{deit},flatten_pvt_v2_b0", attention="relu") == [f"{deit}, relu", "flatten_pvt_v2_b0, relu"]
    assert labels(checkpoint=files, model=deit) == ["focused/version_0", "focused/version_0 (2)", deit]


def test_untrained_weights_are_the_same_each_time_and_leave_the_dice_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    one, other = (load_models(Path("image.png"), model="flatten_pvt_v2_b0")[0].network for _ in range(2))
    assert torch.equal(torch.rand(2), wanted)
    for came, again in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(came, again)


@pytest.mark.usefixtures("undrawn")
def test_a_softmax_model_of_timms_with_weights_of_a_file(flatten: Flatten) -> None:
    weights = timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict()
    save_file(weights, "vit.safetensors")
    named: dict[str, Any] = {"model": "vit_tiny_patch16_224", "pretrained_file": Path("vit.safetensors"), "img_size": 32}
    found = load_models(Path("image.png"), **named)[0].network.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())
    options = ["--model", "vit_tiny_patch16_224", "--img_size", "32", "--pretrained_file", "vit.safetensors"]
    status, _, err = flatten("analyze", "image.png", *options)
    assert (status, err) == (0, "")
    model = numbers()["models"][0]
    assert model["about"] == "vit_tiny_patch16_224, weights of vit.safetensors"
    assert {layer["design"] for layer in model["layers"]} == {"softmax"}


@pytest.mark.usefixtures("undrawn")
def test_the_cure_for_weights_of_another_layout_can_be_passed(flatten: Flatten) -> None:
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).state_dict(), "vit.safetensors")
    options = ["--model", "flatten_deit_tiny_patch16_224", "--img_size", "32", "--pretrained_file", "vit.safetensors"]
    options += ["--model_args.depth", "1"]
    status, _, err = flatten("analyze", "image.png", *options)
    assert (status, err.count("\n")) == (2, 1)
    cure = err.partition(": add ")[2].split()
    assert cure == ["--model_args.class_token", "true", "--model_args.global_pool", "token"]
    assert flatten("analyze", "image.png", *options, *cure)[0] == 0
    assert numbers()["models"][0]["layers"][-1]["name"] == "blocks.0.attn"


@pytest.mark.usefixtures("undrawn")
def test_the_options_say_what_is_shown(flatten: Flatten) -> None:
    choice = ["--query", "3,1", "--block", "0", "--head", "1", "--top_k", "3", "--channels", "2"]
    assert flatten(*ANALYZE.split(), *choice)[0] == 0
    assert numbers()["models"][0]["query"] == [3, 1]
    html = Path("runs/analysis/report.html").read_text()
    assert "the matrix of blocks.0.attn, head 1" in html
    assert "top-3 mass" in html
    assert "at most 2 of its channels" in html


@pytest.mark.usefixtures("undrawn")
def test_layers_that_are_too_large_are_left_out_not_made_up(flatten: Flatten) -> None:
    options = ["--model", "flatten_pvt_v2_b0", "--img_size", "64", "--max_tokens", "64"]
    assert flatten("analyze", "image.png", *options)[0] == 0
    layers = numbers()["models"][0]["layers"]
    assert [bool(layer["heads"]) for layer in layers] == [False, False, True, True, True, True, True, True]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("analyze", "the following arguments are required: image"),
        ("analyze image.png", "nothing to analyze: give --checkpoint the model.safetensors of a training, or --model"),
        (f"analyze missing.png --checkpoint {FOCUSED}", "no image missing.png: check the path"),
        (f"analyze notes.txt --checkpoint {FOCUSED}", "notes.txt is not an image that Pillow can read"),
        ("analyze image.png --checkpoint missing", "no model file missing: check the path"),
        ("analyze image.png --checkpoint notes.txt", "notes.txt is not a safetensors file"),
        ("analyze image.png --model vit_tny_patch16_224", "timm knows no model 'vit_tny_patch16_224': did you mean vit_tiny"),
        ("analyze image.png --model resnet10t", "no attention of ResNet can be seen"),
        ("analyze image.png --model vit_tiny_patch16_224 --attention relu", "unexpected keyword argument 'attention'"),
        (
            "analyze image.png --model flatten_deit_tiny_patch16_224 --attention rlu",
            "there is no attention 'rlu': did you mean relu",
        ),
        (f"{ANALYZE} --attention relu", "--attention, --model_args and --pretrained_file belong to --model"),
        (f"{ANALYZE} --model_args.depth 2", "--attention, --model_args and --pretrained_file belong to --model"),
        ("analyze image.png --model vit_tiny_patch16_224 --model_args.img_size 32", "must not hold img_size: give --img_size"),
        ("analyze image.png --model a,b --pretrained_file x", "--pretrained_file holds the weights of one model"),
        ("analyze image.png --model vit_tiny_patch16_224 --pretrained_file x", "no file of weights x: check the path"),
        (
            "analyze image.png --model vit_tiny_patch16_224 --pretrained_file resnet.safetensors",
            "the weights of resnet.safetensors do not fit vit_tiny_patch16_224",
        ),
        ("analyze image.png --model a,b,c,d,e,f,g,h", "8 models side by side cannot be told apart: choose 7 at most"),
        (f"{ANALYZE} --img_size 0", "img_size must be at least 1 pixel, got 0"),
        (f"{ANALYZE} --query 4,0", "there is no query 4,0: rows are 0 to 3, columns 0 to 3"),
        (f"{ANALYZE} --query centre", "query must be ROW,COLUMN of a token, counted from 0, such as 3,12; got 'centre'"),
        (f"{ANALYZE} --block 2", "there is no block 2: choose one of 0 blocks.0.attn, 1 blocks.1.attn"),
        (f"{ANALYZE} --head 2", "there is no head 2: head must be 0 to 1"),
        (f"{ANALYZE} --top_k 0", "top_k must be at least 1, got 0"),
        (f"{ANALYZE} --max_tokens 15", "block -1, blocks.1.attn, has 16 tokens, above max_tokens 15: a smaller --img_size"),
        (f"{ANALYZE} --folder notes.txt", "notes.txt is a file: give --folder the name of a folder"),
    ],
)
def test_a_users_error_is_one_line_that_lists_what_exists(command: str, message: str, flatten: Flatten) -> None:
    status, out, err = flatten(*command.split())
    assert status == 2
    assert err.count("\n") == 1, err
    assert err.startswith("flatten: error: ")
    assert message in err
    assert "Traceback" not in out + err
    assert not Path("runs/analysis").exists()


@pytest.mark.parametrize("name", ["rank.png", "numbers.json", "angles.png"])
@pytest.mark.parametrize("way", ["move", "link"])
def test_no_picture_takes_the_place_of_what_is_read(name: str, way: str, flatten: Flatten) -> None:
    Path("folder").mkdir()
    if way == "move":
        Path("image.png").rename(f"folder/{name}")
    else:
        Path(f"folder/{name}").hardlink_to("image.png")
    before = Path(f"folder/{name}").read_bytes()
    status, _, err = flatten("analyze", f"folder/{name}", "--checkpoint", FOCUSED, "--folder", "folder")
    assert status == 2
    assert f"folder/{name} is read by this command, which would write over it" in err
    assert [path.name for path in Path("folder").iterdir()] == [name]
    assert Path(f"folder/{name}").read_bytes() == before


def test_a_stop_leaves_the_report_of_the_models_before(flatten: Flatten, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(model: AnalyzedModel, options: Options) -> Study:
        if model.label.startswith("softmax"):
            raise KeyboardInterrupt
        return study_model(model, options)

    monkeypatch.setattr(analyze, "study_model", stopped)
    monkeypatch.setattr(analyze, "draw", lambda *_: ())
    status, out, err = flatten("analyze", "image.png", "--checkpoint", f"{FOCUSED},{SOFTMAX}")
    kept = "the numbers of 1 of 2 models are kept in runs/analysis; the same command measures all anew"
    assert (status, err) == (130, f"flatten: interrupted: {kept}\n")
    assert "Report: runs/analysis/report.html" in out
    assert [model["label"] for model in numbers()["models"]] == ["focused/version_0"]


def test_a_log_names_each_model_and_its_numbers_are_there_before_the_next(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[int] = []

    def counted(model: AnalyzedModel, options: Options) -> Study:
        there.append(len(numbers()["models"]) if Path("runs/analysis/numbers.json").exists() else 0)
        return study_model(model, options)

    monkeypatch.setattr(analyze, "study_model", counted)
    monkeypatch.setattr(analyze, "draw", lambda *_: ())
    assert cli.main(["analyze", "image.png", "--checkpoint", f"{FOCUSED},{SOFTMAX}"]) == 0
    assert there == [0, 1]
    first, second = capfd.readouterr().err.splitlines()
    assert first == "flatten: 1 of 2: analyzing focused/version_0"
    assert second.startswith("flatten: 2 of 2: analyzing softmax/version_0; about ")


def test_odd_names_of_models_and_images_are_drawn_and_written(flatten: Flatten, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyze, "_draw_model", lambda *_: ())  # two pictures with names are enough
    Path("$x^2$[red]\x1b.safetensors").hardlink_to(FOCUSED)
    image = Path(os.fsdecode(b"caf\xe9.png"))
    Path("image.png").rename(image)
    status, out, err = flatten("analyze", str(image), "--checkpoint", "$x^2$[red]\x1b.safetensors", "--folder", "[b]\x1b")
    assert (status, err) == (0, "")
    assert r"Report: [b]\x1b/report.html" in out.replace("\n", "")
    html = Path("[b]\x1b/report.html").read_text()
    assert r"caf\udce9.png" in html
    assert "\x1b" not in html
    assert Path("[b]\x1b/rank.png").exists()


def test_the_pictures_of_two_models_never_share_a_name() -> None:
    image = torch.zeros(1)
    labels = ["a b", "a_b", "a/b", "a_b_2", "..", "n" * 300]
    models = [AnalyzedModel(label, "", torch.nn.Identity(), image, image) for label in labels]
    names = analyze.file_names(models)
    assert len(set(names)) == len(names) == 4 + 4 * len(labels)
    assert all(len(name) < 200 and "/" not in name for name in names)
    assert analyze.file_names(models[:1])[4:] == ["attention.png", "restored.png", "matrix.png", "angles.png"]
