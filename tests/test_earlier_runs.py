"""What an earlier version wrote can be used: the files in earlier_runs/ and what they did when they were made."""

import lzma
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.earlier_runs.make import FILES, HERE, TASKS, predictions, resume, write_data

TORCH = "2.15."  # made with it; others draw other random numbers in training
TOLERANCE = 1e-4  # of the greatest value; 7e-6 at most between backends and numbers of threads


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (f"{task}.{file}" for task in TASKS for file in FILES):
        Path(name).write_bytes(lzma.decompress((HERE / f"{name}.xz").read_bytes()))


def check(task: str, found: Mapping[str, Tensor]) -> None:
    expected = load_file(HERE / "expected.safetensors")
    for name, value in found.items():
        wanted = expected[f"{task}.{name}"]
        torch.testing.assert_close(value, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max()))


@pytest.mark.parametrize("task", TASKS)
def test_an_earlier_model_says_what_it_said(task: str) -> None:
    check(task, predictions(Path(f"{task}.model.safetensors"), task))


@pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")  # newer than the oldest allowed
@pytest.mark.parametrize("task", TASKS)
def test_an_earlier_training_goes_on_as_it_would_have(task: str) -> None:
    write_data()
    found = resume(Path(f"{task}.last.ckpt"), task)
    if torch.__version__.startswith(TORCH):
        check(task, found)
