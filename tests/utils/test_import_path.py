"""A recipe of somebody else runs no code from the working directory, unless the user says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatten_transformer import cli
from flatten_transformer.training import cli as training  # Lightning logs to the stderr of its first import
from flatten_transformer.training.process import without_lightning_noise
from flatten_transformer.utils import import_path
from flatten_transformer.utils.import_path import without_working_directory

MODULE = "callback_beside_the_recipe"
RECIPE = """
seed_everything: 0
model: {name: flatten_deit_tiny_patch16_224}
trainer:
  fast_dev_run: true
  accelerator: cpu
"""
PLACES = {
    "callbacks": f"callbacks: [{{class_path: {MODULE}.Beside}}]",
    "plugins": f"plugins: [{{class_path: {MODULE}.Beside}}]",
    "logger": f"logger: {{class_path: {MODULE}.Beside}}",
}


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a recipe and what came with it, which leaves a file where it runs."""
    monkeypatch.chdir(tmp_path)
    code = "open('ran', 'w').close()\nfrom lightning.pytorch import Callback\nclass Beside(Callback): pass\n"
    Path(f"{MODULE}.py").write_text(code)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for place, line in PLACES.items():
        Path(f"{place}.yaml").write_text(f"{RECIPE}  {line}\n")


@pytest.mark.parametrize("place", PLACES)
def test_a_recipe_imports_nothing_from_the_working_directory(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as in python -c and in notebooks
    assert cli.main(["fit", "--config", f"{place}.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no module '{MODULE}': {MODULE} in the working directory is not imported unasked" in line
    assert "if you trust it, add --import callback_beside_the_recipe" in line
    assert not Path("ran").exists()
    assert sys.path[0] == ""


def test_who_says_so_uses_a_class_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])  # PYTHONPATH=.
    with without_working_directory(), without_lightning_noise():
        kept = training.TrainingCLI("fit", ["--config", "callbacks.yaml"]).trainer.callbacks  # type: ignore[attr-defined]
    assert "Beside" in [type(callback).__name__ for callback in kept]


def test_a_module_that_is_nowhere_is_no_secret_of_the_working_directory(capsys: pytest.CaptureFixture[str]) -> None:
    Path(f"{MODULE}.py").unlink()
    assert cli.main(["fit", "--config", "callbacks.yaml"]) == 2
    assert f"no module '{MODULE}': install it or correct the name" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["!!python/object/apply:os.system ['touch ran']", "model: !!python/name:os.system"])
def test_a_tag_of_yaml_runs_nothing(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tag.yaml").write_text(content)
    assert cli.main(["fit", "--config", "tag.yaml"]) == 2
    assert "tag.yaml is not a recipe" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_run_as_a_module_nothing_in_the_working_directory_takes_the_place_of_a_library() -> None:
    for name in ("torch", "timm", "yaml", "ctypes"):
        Path(f"{name}.py").write_text("open('ran', 'w').close()")
    library = str(Path(import_path.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": library}
    command = [sys.executable, "-m", "flatten_transformer", "--version"]
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert not Path("ran").exists()


@pytest.mark.parametrize(("entry", "dropped"), [("here", True), ("elsewhere", False), ("library", False), ("deleted", False)])
def test_only_the_entry_that_python_put_there_is_dropped(
    entry: str, dropped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Path(import_path.__file__).resolve().parents[2]
    monkeypatch.chdir(library if entry == "library" else tmp_path)
    first = str(tmp_path / "elsewhere") if entry == "elsewhere" else os.getcwd()
    if entry == "deleted":
        monkeypatch.setattr(os, "getcwd", lambda: os.stat(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "path", [first, first, "rest"])
    import_path._drop_working_directory()
    assert sys.path == ([first, "rest"] if dropped else [first, first, "rest"])
