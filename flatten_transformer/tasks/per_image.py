"""Run a model on image files one by one and report the unusable ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from flatten_transformer.data.reading import OnBadImage
from flatten_transformer.utils.atomic_file import parts_of
from flatten_transformer.utils.progress import note, track
from flatten_transformer.utils.stopping import UnfinishedError

Result = TypeVar("Result")


def run_on_files(
    files: Sequence[Path],
    predict: Callable[[Path], Result],
    handle: Callable[[int, Result], None],
    on_bad_image: OnBadImage = "skip",
) -> list[str]:
    """Run a prediction on image files one by one, handling each result before the next file; progress goes to stderr.

    Args:
        files: Image files.
        predict: Reads a file and returns a result; ValueError or OSError marks the image as unusable.
        handle: Receives the index of the file and the result.
        on_bad_image: ``"skip"`` reports an unusable image on stderr and continues.

    Returns:
        The reason for each skipped image.

    Raises:
        ValueError: If an image is unusable and must not be skipped, or if all are.

    Example:
        >>> run_on_files([Path("a.png"), Path("b.png")], lambda file: file.stem, print)
        0 a
        1 b
        []
    """
    skipped: list[str] = []
    with track(files, str, quick=True) as tracked:
        for number, file in enumerate(tracked):
            try:
                result = predict(file)
            except (ValueError, OSError, MemoryError) as error:  # noqa: PERF203  # one bad image must not stop the rest
                if len(files) == 1:
                    raise
                skipped.append(_reason(file, error))
                if on_bad_image == "raise":
                    raise ValueError(f"{skipped[-1]}; or go on without it: --on_bad_image skip") from error
                note(f"skipped: {skipped[-1]}")
            else:
                handle(number, result)
    if skipped and len(skipped) == len(files):
        raise ValueError(f"none of {len(files)} images can be used; the first: {skipped[0]}")
    return skipped


def say_it_begins_anew(path: Path) -> None:
    """Say on stderr that what unfinished starts have left beside an output is kept, and not continued.

    Args:
        path: The output.
    """
    if parts := parts_of(path):
        note(f"{', '.join(map(str, parts))}: of an earlier start that did not finish, left alone; beginning with the first image")


def _reason(file: Path, error: BaseException) -> str:
    reason = str(error) or type(error).__name__
    return reason if str(file) in reason else f"{file}: {reason}"


def check_complete(skipped: Sequence[str], count: int) -> None:
    """Raise UnfinishedError if images were skipped.

    Args:
        skipped: From :func:`run_on_files`.
        count: Number of images.
    """
    if skipped:
        more = " …" if len(skipped) > 1 else ""
        raise UnfinishedError(f"{len(skipped)} of {count_images(count)} skipped: {skipped[0]}{more}")


def count_images(count: int) -> str:
    """Return a count with its noun.

    Example:
        >>> count_images(1), count_images(2)
        ('1 image', '2 images')
    """
    return f"{count} image{'s' * (count != 1)}"
