"""`flatten predict`: what a trained model sees in image files."""

# n images, K classes.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.model_file import ModelInfo, load_model


class Guess(NamedTuple):
    """A class and its probability in 0 … 1."""

    class_name: str
    probability: float


def predict(images: list[Path], checkpoint: Path, top_k: int = 3) -> None:
    """Print what a trained model sees in image files.

    Args:
        images: Image files, of any format and mode that Pillow reads.
        checkpoint: The model.safetensors of a training.
        top_k: How many classes to print an image, the most probable first.
    """
    model, info = load_model(checkpoint)
    guesses = classify(model, info, images, top_k)
    table = Table(title="The most probable classes")
    table.add_column("image", overflow="fold")  # a path is of no use cut short
    for rank in range(len(guesses[0])):
        table.add_column(f"{rank + 1}.", overflow="fold")
    for image, row in zip(images, guesses, strict=True):
        table.add_row(str(image), *(f"{guess.class_name} ({guess.probability:.1%})" for guess in row))
    Console().print(table)


def classify(model: nn.Module, info: ModelInfo, images: Sequence[Path], top_k: int = 3) -> list[list[Guess]]:
    """Return the most probable classes of each image file, at most ``top_k`` each, the most probable first.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        images: Image files.
        top_k: How many classes an image.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image, or ``top_k`` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    return [_classify_one(model, info, path, top_k) for path in images]


@torch.inference_mode()
def _classify_one(model: nn.Module, info: ModelInfo, path: Path, top_k: int) -> list[Guess]:
    image = info.preprocessing(read_image(path)).unsqueeze(0)  # [1, C, size, size]
    probabilities, classes = model(image)[0].softmax(0).topk(min(top_k, len(info.class_names)))
    return [Guess(info.class_names[index], float(p)) for index, p in zip(classes.tolist(), probabilities, strict=True)]
