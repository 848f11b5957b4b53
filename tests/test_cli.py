import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import flatten_transformer
from flatten_transformer import cli
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.model_file import ModelInfo, save_model
from flatten_transformer.training import cli as training  # noqa: F401  # Lightning logs to the stderr of its first import
from flatten_transformer.training.recipes import find_recipe
from flatten_transformer.utils.stopping import StoppedError, UnfinishedError, raise_on_termination

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
INFO = ModelInfo("flatten_deit_tiny_patch16_224", SIZES, ("zero", "one"), Preprocessing(16, 1, (0.3,), (0.4,)))
Flatten = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with everything that can be wrong, and an image and a model that are not."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("model.safetensors"), INFO.build(), INFO)
    save_file({"weight": torch.zeros(1)}, "timm.safetensors")
    Image.new("L", (8, 8)).save("image.png")
    Path("empty").mkdir()
    Path("notes.txt").write_text("no image, no checkpoint")
    Path("broken.yaml").write_text("model: [")
    Path("unknown.yaml").write_text("model:\n  nmae: resnet10t\n")


@pytest.fixture
def flatten(capfd: pytest.CaptureFixture[str]) -> Flatten:
    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = cli.main(argv)
        except SystemExit as leave:
            status = int(leave.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return run


TEST = "test --config digits/flatten_deit"
FIT = "fit --config digits/flatten_deit"
PREDICT = "predict image.png --checkpoint model.safetensors"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predcit", "no command 'predcit': did you mean predict?"),
        ("train --config x", "no command 'train': did you mean fit?"),
        ("bench", "no command 'bench': did you mean benchmark op or benchmark data or benchmark loop?"),
        ("models --pattern swin_base", "no model fits 'swin_base': did you mean flatten_swin_base_patch4_224 or"),
        ("xyz", "no command 'xyz': choose one of fit, validate, test, recipes, runs, predict"),
        ("fit --confg x", "unrecognized arguments: --confg: did you mean --config"),
        ("fit --config digits/flaten_deit", "no recipe and no file 'digits/flaten_deit': did you mean digits/flatten_deit"),
        ("fit --config missing.yaml", "no recipe and no file 'missing.yaml': choose one of"),
        ("fit --config broken.yaml", "broken.yaml is not a recipe: it cannot be read as YAML"),
        ("fit --config unknown.yaml", "Group 'model' does not accept option 'nmae': did you mean --model.name"),
        ("fit --config", "expected one argument"),
        (f"{FIT} --trainer.max_epochs many", '"trainer.max_epochs": Expected one of int, null. Got value: many'),
        (f"{FIT} --precision 12", '"trainer.precision": Expected one of 64, 32, 16, transformer-engine'),
        (f"{FIT} --precision=", "64-true, bf16, null. Got value: ''"),
        (f"{FIT} --trainer.logger Nope", '"trainer.logger": Expected one of Logger, Iterable[Logger], bool, null. Got'),
        (f"{FIT} --trainer.logger CSVLogger", '"trainer.logger": CSVLogger needs save_dir: add --trainer.logger.save_dir (see'),
        (
            f"{FIT} --trainer.callbacks+=EarlyStopping --trainer.callbacks.patienc=3",
            "\"trainer.callbacks\": there is no option 'patienc': leave it out or correct its name",
        ),
        (f"{FIT} --data.augmentation x", '"data.augmentation": Expected options by name, or a file of them. Got value: x'),
        (f"{FIT} --epochs 0", "trainer.max_epochs must be at least 1, or -1 for no such end, got 0"),
        (f"{FIT} --seed -1", "seed_everything must be 0 to 4294967295, got -1"),
        (f"{FIT} --ckpt_path=", "give --ckpt_path a .ckpt file of an earlier run"),
        (f"{FIT} --model.model_args [", '"model.model_args": Expected one of dict[str, Any], null. Got value: ['),
        (
            f"{FIT} --model.model_args {{img_size:64}}",
            "{img_size:64} has no value in YAML: write a space after the colon, {img_size: 64}",
        ),
        (f"{FIT} --import=", "--import needs the name of a module, or of a .py file"),
        (
            f"{FIT} --trainer.acelerator cpu",
            "unrecognized arguments: --trainer.acelerator cpu: did you mean --trainer.acc",
        ),
        (f"{FIT} --trainer.strategy together", "You selected an invalid strategy name: `strategy='together'`"),
        (f"{FIT} --trainer.accelerator tpu", "torch_xla"),
        (
            f"{FIT} --model.name flaten_deit_tiny",
            "timm knows no model 'flaten_deit_tiny': did you mean flatten_",
        ),
        (
            f"{FIT} --model.model_args.dpth 2",
            "got an unexpected keyword argument 'dpth': leave it out or correct its name",
        ),
        (f"{FIT} --model.optim.lr -1", "lr must be positive and at least min_lr, got lr -1.0"),
        (f"{FIT} --data.dataset mnist", "no data set 'mnist': did you mean torch/mnist"),
        (f"{FIT} --data.dataset folder", "the data set 'folder' needs a folder: add --data.root"),
        (f"{FIT} --data.dataset folder --data.root missing", "no folder missing: check data.root"),
        (f"{FIT} --data.dataset folder --data.root notes.txt", "notes.txt is a file: data.root must be a folder"),
        (f"{FIT} --data.dataset folder --data.root empty", "empty is empty: put the images of each class into a folder"),
        (f"{FIT} --data.batch_size 0", "batch_size must be at least 1, got 0"),
        (f"{FIT} --name {'x' * 300}", "--name must have 240 bytes at most, got 300: xxx"),
        (f"{FIT} --ckpt_path missing.ckpt", "no checkpoint missing.ckpt: give --ckpt_path a .ckpt file of an earlier run"),
        (f"{FIT} --ckpt_path notes.txt", "notes.txt is not a checkpoint of a training: give --ckpt_path"),
        (
            "test --config digits/flatten_deit --ckpt_path model.safetensors",
            "model.safetensors is not a checkpoint of",
        ),
        (f"{TEST} --csv empty", "empty is a folder: remove it, or choose another name for the file that is written"),
        ("predict", "the following arguments are required: images"),
        ("predict image.png", "the following arguments are required: checkpoint"),
        (f"{PREDICT} --topk 1", "unrecognized arguments: --topk 1: did you mean --top_k?"),
        (f"{PREDICT} --top_k few", '"top_k": Expected one of int, null. Got value: few'),
        (f"{PREDICT} --top_k 0", "top_k must be at least 1, got 0"),
        ("predict missing.png --checkpoint model.safetensors", "no image missing.png: check the path"),
        ("predict notes.txt --checkpoint model.safetensors", "notes.txt is not an image that Pillow can read"),
        ("predict empty --checkpoint model.safetensors", "empty holds no image (.bmp, .gif"),
        (f"{PREDICT} --csv empty", "empty is a folder: give --csv the name of a file"),
        ("predict image.png --checkpoint missing", "no model file missing: check the path; `flatten fit` writes one"),
        ("predict image.png --checkpoint notes.txt", "notes.txt is not a safetensors file"),
        ("predict image.png --checkpoint timm.safetensors", "timm.safetensors does not say which model it holds"),
    ],
)
def test_a_users_error_is_one_line_that_says_what_to_do(command: str, message: str, flatten: Flatten) -> None:
    status, out, err = flatten(*command.split())
    lines = [line for line in err.splitlines() if line and not line.startswith("Seed set to")]
    assert status == 2
    assert len(lines) == 1, err
    assert lines[0].startswith("flatten: error: ")
    assert message in lines[0]
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("backend", "message"),
    [("fast", "backend must be one of portable, cpp, triton"), ("triton", 'backend "triton" cannot run here')],
)
def test_a_backend_that_cannot_run_is_a_users_error(
    backend: str, message: str, flatten: Flatten, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("FLATTEN_BACKEND", backend)
    status, _, err = flatten(*PREDICT.split())
    assert status == 2
    assert err.startswith("flatten: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_error_of_the_library_keeps_its_traceback(flatten: Flatten, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "call", broken)
    with pytest.raises(KeyError, match="a bug"):
        flatten(*PREDICT.split())


def test_a_users_error_shows_where_it_comes_from_when_asked(flatten: Flatten, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATTEN_DEBUG", "1")
    with pytest.raises(ValueError, match="no command"):
        flatten("predcit")


@pytest.mark.parametrize(("command", "module"), [(FIT, "lightning"), (PREDICT, "rich"), (PREDICT, "jsonargparse")])
def test_a_missing_extra_is_named_with_its_cure(
    command: str, module: str, flatten: Flatten, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ("flatten_transformer.tasks", "flatten_transformer.commands.")
    for name in [name for name in sys.modules if name.startswith(ours) or name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = flatten(*command.split())
    assert status == 2
    assert f"flatten: error: this command needs {module}" in err
    assert "pip install 'flatten-transformer[train]'" in err


def test_a_module_that_is_no_extra_is_a_bug(flatten: Flatten, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "no-such", "")
    with pytest.raises(ModuleNotFoundError, match=r"commands\.no_such"):
        flatten("no-such")


@pytest.mark.parametrize("name", [*cli.TRAINING, *cli.COMMANDS])
def test_what_the_console_script_has_put_off_is_imported_before_a_command_that_needs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_package() -> None:
        raise ImportError("the package is run")

    monkeypatch.setattr(cli, "run_package", run_package)
    recipe = ["--config", "digits/flatten_deit"] if name in cli.TRAINING else []
    with pytest.raises(ImportError, match="the package is run") if name not in cli.LIGHT else suppress(FileNotFoundError):
        cli.run([*name.split(), *recipe])


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_command(argv: tuple[str, ...], flatten: Flatten) -> None:
    status, out, err = flatten(*argv)
    assert (status, err) == (0, "")
    for name in (*cli.TRAINING, *cli.COMMANDS):
        assert f"flatten {name} " in out


def test_the_version_is_that_of_the_library(flatten: Flatten) -> None:
    assert flatten("--version") == (0, f"flatten {flatten_transformer.__version__}\n", "")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("fit --config digits/flatten_deit --help-all", ["--config", "--model.name", "--data.img_size", "--trainer.max_epochs"]),
        ("fit --config scenes/mask_rcnn --help-all", ["--data.train_annotations", "--data.sizes"]),
        ("fit --help", ["--config", "--lr", "--epochs", "--name", "--help-all"]),
        ("predict --help", ["Image files", "--checkpoint", "--top_k", "--csv"]),
    ],
)
def test_every_option_has_its_help(command: str, options: list[str], flatten: Flatten) -> None:
    status, out, err = flatten(*command.split())
    assert status == 0
    assert err in ("", "scenes/mask_rcnn is the recipe scenes/mask_rcnn_flatten_pvt_v2\n")
    assert all(option in out for option in options)


def test_predict_prints_names_and_probabilities(flatten: Flatten) -> None:
    status, out, _ = flatten(*PREDICT.split(), "--top_k", "2")
    assert status == 0
    assert "zero" in out
    assert "one" in out
    assert out.count("%") == 2


def test_a_module_becomes_a_command_in_one_line(flatten: Flatten, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "find", "find a recipe")
    monkeypatch.setitem(sys.modules, "flatten_transformer.commands.find", SimpleNamespace(find=find_recipe))
    assert "flatten find " in flatten("--help")[1]
    assert flatten("find", "--name", "digits/flatten_deit")[0] == 0
    assert flatten("find", "--name", "digits")[0] == 2


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "flatten: interrupted"),
        (StoppedError(15), 143, "flatten: stopped by SIGTERM"),
        (UnfinishedError("1 of 2 images skipped: a\x1b.png"), 1, r"flatten: 1 of 2 images skipped: a\x1b.png"),
        (
            ValueError("\x1b]0;owned\x07 \u202e\udce9\nflatten: fine"),
            2,
            r"flatten: error: \x1b]0;owned\x07 \u202e\udce9 flatten: fine",
        ),
        (ValueError("n" * 100_000), 2, "flatten: error: " + "n" * 3993 + " …"),
        (BrokenPipeError(32, "Broken pipe", "pipe"), 2, "flatten: error: [Errno 32] Broken pipe: 'pipe'"),
    ],
)
def test_whatever_ends_a_command_is_one_printable_line(
    error: BaseException, status: int, line: str, flatten: Flatten, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "run", end)
    assert flatten("predict") == (status, "", f"{line}\n")


def test_a_reader_of_stdout_may_leave(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert cli.main(["--help"]) == 141
        monkeypatch.undo()
    assert capfd.readouterr().err == ""


def test_stdout_escapes_what_its_encoding_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as narrow:
        monkeypatch.setattr("sys.stdout", narrow)
        monkeypatch.setattr(cli, "overview", lambda: "猫")
        assert cli.main(["--help"]) == 0
        monkeypatch.undo()
    assert (tmp_path / "out").read_text() == r"\u732b"


def test_signals_that_somebody_else_handles_are_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with raise_on_termination():
            signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
