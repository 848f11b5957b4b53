"""`flatten predict`: what a trained model sees in image files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from flatten_transformer.data.image_folder import SUFFIXES, find_images
from flatten_transformer.lazy import load
from flatten_transformer.tasks.kinds import Kind
from flatten_transformer.tasks.model_file import load_model


class Use(NamedTuple):
    """How a kind of model is used on files."""

    does: str  # in words
    options: tuple[str, ...]  # of :func:`predict` that have a meaning for it
    function: str  # of a model, its info, files and these options, as ``"module:function"``


_HERE = "flatten_transformer.tasks"
USES: Mapping[Kind, Use] = {
    "classify": Use("classifies images", ("top_k", "csv"), f"{_HERE}.classification.prediction:predict_files"),
    "detect": Use("detects objects", ("output", "threshold"), f"{_HERE}.detection.prediction:predict_files"),
    "segment": Use("segments images", ("output",), f"{_HERE}.segmentation.prediction:predict_files"),
}


def predict(
    images: list[Path],
    checkpoint: Path,
    task: Kind | None = None,
    top_k: int | None = None,
    csv: Path | None = None,
    output: Path | None = None,
    threshold: float | None = None,
) -> None:
    """Print or write what a trained model sees in image files; its file says whether it classifies, detects or segments.

    Args:
        images: Image files, PNG, JPEG, WebP, TIFF, AVIF and their like, or folders, of which all images are taken.
        checkpoint: The model.safetensors of a training.
        task: What the model must do; by default whatever it does.
        top_k: A classifier prints so many classes an image, the most probable first; by default 3.
        csv: A classifier writes a table of file, class and probability into this file instead of printing.
        output: A detector or segmenter writes into this folder; by default predictions.
        threshold: A detector leaves out what has a lower score, in 0 … 1; by default 0.5.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image, a folder holds none, or an option is out of range or not for this model.
    """
    files = expand(images)
    model, info = load_model(checkpoint)
    use = USES[info.task]
    if task not in (None, info.task):
        raise ValueError(f"the model in {checkpoint} {use.does}: leave --task {task} out, or give a model that does so")
    values: dict[str, Any] = {"top_k": top_k, "csv": csv, "output": output, "threshold": threshold}
    given = {name: value for name, value in values.items() if value is not None}
    if idle := [name for name in given if name not in use.options]:
        raise ValueError(f"the model in {checkpoint} {use.does} and takes no --{idle[0]}: leave it out")
    load(use.function)(model, info, files, **given)


def expand(images: Sequence[Path]) -> list[Path]:
    """Return image files, with the images in a folder, and in the folders in it, sorted, in its place.

    Args:
        images: Files and folders.

    Raises:
        ValueError: If a folder holds no image.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "a.png").touch()
        >>> [path.name for path in expand([folder, Path("b.png")])]
        ['a.png', 'b.png']
    """
    files: list[Path] = []
    for path in images:
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} holds no image ({', '.join(SUFFIXES)}): give it a folder of images, or image files")
        files += found
    return files


@contextmanager
def patience_bar(total: int, after_s: float = 2.0) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal's stderr if the work takes long; yields what is called after each piece of it.

    Args:
        total: Pieces of work.
        after_s: Seconds before the bar appears.

    Example:
        >>> with patience_bar(2) as advance:
        ...     advance()
    """
    console, start = Console(stderr=True), time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("Looking", total=total, visible=False)
        yield lambda: progress.update(bar, advance=1, visible=time.monotonic() - start > after_s)
