"""What a trained classifier sees in image files: as values, as a table, and as CSV."""

# n images, K classes.

from __future__ import annotations

import io
from collections.abc import Sequence
from csv import writer
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from flatten_transformer.atomic_file import write_atomically
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.model_file import ModelInfo, seeing
from flatten_transformer.tasks.prediction import patience_bar


class Guess(NamedTuple):
    """A class and its probability in 0 … 1."""

    class_name: str
    probability: float


def predict_files(model: nn.Module, info: ModelInfo, files: Sequence[Path], top_k: int = 3, csv: Path | None = None) -> None:
    """Print the most probable classes of image files, or write them into a CSV file.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        files: Image files.
        top_k: How many classes to print an image, the most probable first.
        csv: Write a table of file, class and probability into this file, a line for each class, instead of printing.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image, ``csv`` is a folder, or ``top_k`` is below 1.
    """
    if csv is not None and csv.is_dir():
        raise ValueError(f"{csv} is a folder: give --csv the name of a file, such as {csv}/classes.csv")
    guesses: list[list[Guess]] = []
    with patience_bar(len(files)) as advance:
        for file in files:
            guesses += classify(model, info, [file], top_k)
            advance()
    if csv is None:
        Console().print(_table(files, guesses))
    else:
        write_atomically(csv, _csv(files, guesses))
        Console().print(f"The classes of {len(files)} image{'s' * (len(files) != 1)} are in {escape(str(csv))}")


def _table(files: Sequence[Path], guesses: Sequence[Sequence[Guess]]) -> Table:
    table = Table(title="The most probable classes")
    table.add_column("image", overflow="fold")  # a path is of no use cut short
    for rank in range(len(guesses[0])):
        table.add_column(f"{rank + 1}.", overflow="fold")
    for file, row in zip(files, guesses, strict=True):
        table.add_row(escape(str(file)), *(escape(f"{guess.class_name} ({guess.probability:.1%})") for guess in row))
    return table


def _csv(files: Sequence[Path], guesses: Sequence[Sequence[Guess]]) -> bytes:
    text = io.StringIO(newline="")
    lines = writer(text, lineterminator="\n")
    lines.writerow(("file", "class", "probability"))
    for file, row in zip(files, guesses, strict=True):
        lines.writerows((file, guess.class_name, f"{guess.probability:.6f}") for guess in row)
    return text.getvalue().encode("utf-8", "surrogateescape")  # a file's name need not be text


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
    with seeing(info):
        logits = model(image)[0]  # [K]
    probabilities, classes = logits.softmax(0).topk(min(top_k, len(info.class_names)))
    return [Guess(info.class_names[index], float(p)) for index, p in zip(classes.tolist(), probabilities, strict=True)]
