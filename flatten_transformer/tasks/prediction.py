"""`flatten predict`: what a trained model sees in image files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import Progress

from flatten_transformer.atomic_file import check_outputs
from flatten_transformer.data.image_folder import SUFFIXES, find_images
from flatten_transformer.data.loading import OnBadImage
from flatten_transformer.printable import printable
from flatten_transformer.stopping import UnfinishedError, stopped_like_ctrl_c
from flatten_transformer.tasks.kinds import Kind
from flatten_transformer.tasks.model_file import load_model

Found = TypeVar("Found")


class Use(NamedTuple):
    """How a kind of model is used on files."""

    does: str  # in words
    options: tuple[str, ...]  # of :func:`predict` that have a meaning for it alone
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
    on_bad_image: OnBadImage = "skip",
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
        on_bad_image: skip: name an image that cannot be used, go on with the others, and end with exit status 1; raise: end
            there. What was found before is kept either way.

    Raises:
        FileNotFoundError: If a file is missing.
        UnfinishedError: At the end, if images were skipped; all others are done.
        ValueError: If no image can be used, a folder holds none, an output would take the place of an image or of the model,
            or an option is out of range or not for this model.
    """
    files = expand(images)
    if missing := next((path for path in images if not path.exists()), None):
        raise FileNotFoundError(f"no image {missing}: check the path")
    if csv is not None and not csv.is_dir():
        check_outputs([csv], [*files, checkpoint])
    model, info = load_model(checkpoint)
    use = USES[info.task]
    if task not in (None, info.task):
        raise ValueError(f"the model in {checkpoint} {use.does}: leave --task {task} out, or give a model that does so")
    values: dict[str, Any] = {"top_k": top_k, "csv": csv, "output": output, "threshold": threshold}
    given = {name: value for name, value in values.items() if value is not None}
    if idle := [name for name in given if name not in use.options]:
        raise ValueError(f"the model in {checkpoint} {use.does} and takes no --{idle[0]}: leave it out")
    with stopped_like_ctrl_c():
        resolve_name(use.function)(model, info, files, **given, on_bad_image=on_bad_image, inputs=[checkpoint])


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


def look_at(
    files: Sequence[Path],
    look: Callable[[Path], Found],
    keep: Callable[[int, Found], None],
    on_bad_image: OnBadImage = "skip",
    *,
    bar: bool = True,
) -> list[str]:
    """Look at image files one after the other, and keep what is found in each before the next.

    Args:
        files: Image files.
        look: Reads one and returns what is found; its ValueError or OSError says that this image cannot be used.
        keep: Gets the number of the file, from 0, and what is found.
        on_bad_image: ``"skip"`` names an image that cannot be used on stderr and goes on.
        bar: Show how far it is, on a terminal.

    Returns:
        Why images were skipped, a sentence each.

    Raises:
        ValueError: If an image cannot be used and is not to be skipped, or none can.

    Example:
        >>> look_at([Path("a.png"), Path("b.png")], lambda file: file.stem, print)
        0 a
        1 b
        []
    """
    skipped: list[str] = []
    with patience_bar(len(files), shown=bar) as advance:
        for number, file in enumerate(files):
            try:
                found = look(file)
            except (ValueError, OSError, MemoryError) as error:
                if len(files) == 1:
                    raise
                skipped.append(_reason(file, error))
                if on_bad_image == "raise":
                    raise ValueError(f"{skipped[-1]}; or go on without it: --on_bad_image skip") from error
                sys.stderr.write(f"flatten: skipped: {printable(' '.join(skipped[-1].split()))}\n")
            else:
                keep(number, found)
            advance()
    if skipped and len(skipped) == len(files):
        raise ValueError(f"none of {len(files)} images can be used; the first: {skipped[0]}")
    return skipped


def _reason(file: Path, error: BaseException) -> str:
    reason = str(error) or type(error).__name__
    return reason if str(file) in reason else f"{file}: {reason}"


def check_complete(skipped: Sequence[str], count: int) -> None:
    """Raise UnfinishedError if images were skipped.

    Args:
        skipped: From :func:`look_at`.
        count: How many images there were.
    """
    if skipped:
        more = " …" if len(skipped) > 1 else ""
        raise UnfinishedError(f"{len(skipped)} of {count_images(count)} skipped: {skipped[0]}{more}")


def count_images(count: int) -> str:
    """Return a number of images in words.

    Example:
        >>> count_images(1), count_images(2)
        ('1 image', '2 images')
    """
    return f"{count} image{'s' * (count != 1)}"


@contextmanager
def patience_bar(total: int, after_s: float = 2.0, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal's stderr if the work takes long; yields what is called after each piece of it.

    Args:
        total: Pieces of work.
        after_s: Seconds before the bar appears.
        shown: False shows none.

    Example:
        >>> with patience_bar(2) as advance:
        ...     advance()
    """
    console, start = Console(stderr=True), time.monotonic()
    hidden = not (shown and console.is_terminal)
    with Progress(console=console, transient=True, disable=hidden, redirect_stdout=False) as progress:
        bar = progress.add_task("Looking", total=total, visible=False)
        yield lambda: progress.update(bar, advance=1, visible=time.monotonic() - start > after_s)
