"""Classify image files; return the classes, print a table or write CSV."""

# n images, K classes.

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.reading import OnBadImage
from flatten_transformer.tasks.model_file import ModelInfo, forward_errors
from flatten_transformer.tasks.per_image import check_complete, count_images, run_on_files, say_it_begins_anew
from flatten_transformer.utils.atomic_file import check_outputs, is_stream
from flatten_transformer.utils.csv_file import CsvFile, path_cell
from flatten_transformer.utils.terminal import RowPrinter, say


class Guess(NamedTuple):
    """A class and its probability in 0 … 1."""

    class_name: str
    probability: float


def predict_files(
    model: nn.Module,
    info: ModelInfo,
    files: Sequence[Path],
    top_k: int = 3,
    csv: Path | None = None,
    on_bad_image: OnBadImage = "skip",
    inputs: Sequence[Path] = (),
) -> None:
    """Print the most probable classes of image files, or write them to a CSV file, image by image.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        files: Image files.
        top_k: Classes per image, the most probable first.
        csv: Write file, class and probability to this file, one row per class, instead of printing.
        on_bad_image: ``"skip"`` continues without an unusable image; ``"raise"`` stops there.
        inputs: Further files that must not be overwritten.

    Raises:
        FileNotFoundError: If a file is missing.
        UnfinishedError: At the end, if images were skipped.
        ValueError: If no image is usable, ``csv`` is a folder or one of the files that are read, or ``top_k`` is below 1.
    """
    _check(top_k)
    if csv is None:
        skipped = _print(model, info, files, top_k, on_bad_image)
    else:
        if csv.is_dir():
            raise ValueError(f"{csv} is a folder: give --csv the name of a file, such as {csv}/classes.csv")
        check_outputs([csv], [*files, *inputs])
        say_it_begins_anew(csv.resolve() if csv.is_symlink() else csv)  # a link stays, its target is replaced
        skipped = _write(model, info, files, top_k, csv, on_bad_image)
    check_complete(skipped, len(files))


def _print(model: nn.Module, info: ModelInfo, files: Sequence[Path], top_k: int, on_bad_image: OnBadImage) -> list[str]:
    widest = {"image": max(map(str, files), key=len)}
    for rank in range(min(top_k, len(info.class_names))):
        widest[f"{rank + 1}."] = f"{max(info.class_names, key=len)} (100.0%)"
    table = RowPrinter("The most probable classes", widest)

    def handle(number: int, row: Sequence[Guess]) -> None:
        table.print(str(files[number]), *(f"{guess.class_name} ({guess.probability:.1%})" for guess in row))

    predict = partial(_classify_one, model, info, top_k=top_k)
    return run_on_files(files, predict, handle, on_bad_image)


def _write(
    model: nn.Module, info: ModelInfo, files: Sequence[Path], top_k: int, csv: Path, on_bad_image: OnBadImage
) -> list[str]:
    table, done = CsvFile(csv, ("file", "class", "probability")), 0

    def handle(number: int, row: Sequence[Guess]) -> None:
        nonlocal done
        table.write_rows([(path_cell(files[number]), guess.class_name, f"{guess.probability:.6f}") for guess in row])
        done += 1

    try:
        with table:
            return run_on_files(files, partial(_classify_one, model, info, top_k=top_k), handle, on_bad_image)
    finally:
        if done:
            say(f"The classes of {count_images(done)} are in {table.place}", stderr=is_stream(csv))


def classify(model: nn.Module, info: ModelInfo, images: Sequence[Path], top_k: int = 3) -> list[list[Guess]]:
    """Return the most probable classes of each image file, at most ``top_k`` each, the most probable first.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        images: Image files.
        top_k: Classes per image.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image, or ``top_k`` is below 1.
    """
    _check(top_k)
    return [_classify_one(model, info, path, top_k) for path in images]


def _check(top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")


@torch.inference_mode()
def _classify_one(model: nn.Module, info: ModelInfo, path: Path, top_k: int) -> list[Guess]:
    image = info.preprocessing(read_image(path)).unsqueeze(0)  # [1, C, size, size]
    with forward_errors(info):
        logits = model(image)[0]  # [K]
    probabilities, classes = logits.softmax(0).topk(min(top_k, len(info.class_names)))
    return [Guess(info.class_names[index], float(p)) for index, p in zip(classes.tolist(), probabilities, strict=True)]
