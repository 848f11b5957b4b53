"""Fixtures of the whole suite, doctests included."""

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from tests.fixtures import draw_folder, mask_folder  # noqa: F401

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when something first imports it
import flatten_transformer  # noqa: F401  # whole: pytest, importing parts of it alone, would put modules over its names

collect_ignore_glob = [] if find_spec("triton") else ["flatten_transformer/ops/triton/*"]  # its examples


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
