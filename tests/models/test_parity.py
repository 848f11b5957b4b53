"""Every family gives the authors' numbers: class scores and gradients their code computed in float64 (tests/parity)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.helpers import relative_error
from tests.parity.weights import fill, image

PARITY = Path(__file__).parents[1] / "parity"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "flatten_cswin_t": ("flatten_cswin_tiny_224", {}),
    "flatten_pvt_t": ("flatten_pvt_tiny", {}),
    "flatten_pvt_t_sr8421": ("flatten_pvt_tiny", {"sr_ratios": (8, 4, 2, 1), "stretch": "tokens"}),
    "flatten_pvt_v2_b0": ("flatten_pvt_v2_b0", {}),
    "flatten_pvt_v2_b1": ("flatten_pvt_v2_b1", {}),
    "flatten_swin_s": ("flatten_swin_small_patch4_224", {}),
    "flatten_swin_t": ("flatten_swin_tiny_patch4_224", {}),
    "flatten_swin_t_llll_p4_k3": (
        "flatten_swin_tiny_patch4_224",
        {"attn_types": "LLLL", "focusing_factor": 4, "kernel_size": 3},
    ),
}


@dataclass(frozen=True)
class Authors:
    """What the authors' code had and gave, in float64."""

    weights: dict[str, Tensor]
    images: Tensor
    logits: Tensor
    input_grad_rms: float
    parameters: int

    @classmethod
    def read(cls, file: str) -> Authors:
        data = np.load(PARITY / f"{file}.npz")
        shapes = (tuple(ast.literal_eval(shape)) for shape in data["shapes"])
        return cls(
            weights={str(key): torch.from_numpy(fill(key, shape)) for key, shape in zip(data["keys"], shapes, strict=True)},
            images=torch.from_numpy(image(*(int(data[key]) for key in ("seed", "batch", "height", "width")))),
            logits=torch.from_numpy(data["logits"]),
            input_grad_rms=float(data["input_grad_rms"]),
            parameters=int(data["parameters"]),
        )


@pytest.fixture(scope="module", params=sorted(MODELS))
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def authors(file: str) -> Authors:
    """Return the data of one file, drawn once for all tests of it."""
    return Authors.read(file)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    """Yield where a checkpoint may lie, and remove it: pytest would keep gigabytes of them."""
    path = tmp_path / "official.pth"
    yield path
    path.unlink()


def test_all_the_data_is_compared() -> None:
    assert {path.stem for path in PARITY.glob("*.npz")} == set(MODELS)


def test_an_official_file_gives_the_authors_scores(file: str, authors: Authors, checkpoint: Path) -> None:
    torch.save({"model": {name: value.float() for name, value in authors.weights.items()}, "epoch": 299}, checkpoint)
    name, options = MODELS[file]
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(checkpoint)}, **options).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == authors.parameters
    with torch.no_grad():
        assert relative_error(model(authors.images.float()), authors.logits) < 3e-6  # measured: 1.0e-6 at most


def test_float64_gives_the_authors_scores_and_gradients_to_the_last_digits(file: str, authors: Authors) -> None:
    name, options = MODELS[file]
    model = timm.create_model(name, **options).double().eval().requires_grad_(False)
    model.load_state_dict(sys.modules[type(model).__module__].checkpoint_filter_fn(authors.weights, model))
    images = authors.images.clone().requires_grad_()
    logits = model(images)
    assert relative_error(logits, authors.logits) < 1e-13  # measured: 3e-15 at most
    ramp = torch.linspace(-1, 1, logits.shape[1], dtype=torch.float64)  # what the authors' scores were weighted by
    (gradient,) = torch.autograd.grad((logits * ramp).sum(), images)
    rms = float(gradient.square().mean().sqrt())
    assert rms == pytest.approx(authors.input_grad_rms, rel=1e-12)  # measured: 2.3e-16 at most
