"""The notebook runs from top to bottom, on images of its own."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NOTEBOOK = json.loads((Path(__file__).parents[1] / "notebooks" / "fine_tune.ipynb").read_text("utf-8"))
CELLS: list[dict[str, Any]] = NOTEBOOK["cells"]
SMALL = {"EPOCHS = 10": "EPOCHS = 1", '"embed_dim": 64, "depth": 2': '"embed_dim": 16, "depth": 1', "in (3, 5, 8)": "in (3, 5)"}


def run_cells(names: dict[str, Any]) -> list[Any]:
    """Run all cells of code in one namespace, for a short training; return what each shows: its last expression, if any."""
    cells = [ast.parse("".join(cell["source"])) for cell in short_cells() if cell["cell_type"] == "code"]
    shown = []
    for cell in cells:
        last, value = cell.body[-1], None
        if isinstance(last, ast.Expr):
            cell.body.pop()
        exec(compile(cell, "fine_tune.ipynb", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "fine_tune.ipynb", "eval"), names)
        shown.append(value._repr_png_() if isinstance(value, Image.Image) else value)  # as Jupyter does
    return shown


def short_cells() -> list[dict[str, Any]]:
    """Return the cells with a smaller model, fewer images and epochs."""
    text = json.dumps(CELLS)
    for long, short in SMALL.items():
        long, short = json.dumps(long)[1:-1], json.dumps(short)[1:-1]
        assert text.count(long) == 1
        text = text.replace(long, short)
    cells: list[dict[str, Any]] = json.loads(text)
    return cells


def test_it_is_a_notebook_of_version_4_5_without_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in CELLS]
    assert len({*ids}) == len(ids)
    assert all(cell.keys() == {"cell_type", "id", "metadata", "source"} for cell in CELLS if cell["cell_type"] == "markdown")
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in CELLS if cell["cell_type"] == "code")


def test_it_trains_judges_and_uses_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    *shown, last = run_cells(names)
    assert sum(isinstance(each, bytes) for each in shown) >= 3  # some images, curves.png, per_class.png
    assert names["info"].class_names == [*last] == ["digit 3", "digit 5"]
    assert sum(last.values()) == pytest.approx(1)
    assert {"test/accuracy", "test/loss"} <= shown[-1].keys()
    folder = names["run"].folder
    told = [line.split("|")[1] for line in CELLS[-1]["source"] if line.startswith("| `")]
    files = [name.strip(" `").replace("…", "*") for cell in told for name in cell.split(",")]
    assert {"checkpoints/model.safetensors", "best-*.ckpt", "curves.png"} <= {*files}
    assert [name for name in files if not [*folder.rglob(name)]] in ([], ["mistakes.png"])
