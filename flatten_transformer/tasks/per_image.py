"""Run a model on image files one by one, and say which could not be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]  # comes with Lightning, without annotations

from flatten_transformer.data.reading import OnBadImage
from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.stopping import UnfinishedError

Found = TypeVar("Found")
_PATIENCE_S = 2.0  # before a progress bar appears


def run_on_files(
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
        >>> run_on_files([Path("a.png"), Path("b.png")], lambda file: file.stem, print)
        0 a
        1 b
        []
    """
    skipped: list[str] = []
    # shown on a terminal alone, to those who wait
    for number, file in enumerate(tqdm(files, delay=_PATIENCE_S, leave=False, disable=None if bar else True)):
        try:
            found = look(file)
        except (ValueError, OSError, MemoryError) as error:  # noqa: PERF203  # one image must not end the others
            if len(files) == 1:
                raise
            skipped.append(_reason(file, error))
            if on_bad_image == "raise":
                raise ValueError(f"{skipped[-1]}; or go on without it: --on_bad_image skip") from error
            tqdm.write(f"flatten: skipped: {printable(' '.join(skipped[-1].split()))}", file=sys.stderr)
        else:
            keep(number, found)
    if skipped and len(skipped) == len(files):
        raise ValueError(f"none of {len(files)} images can be used; the first: {skipped[0]}")
    return skipped


def _reason(file: Path, error: BaseException) -> str:
    reason = str(error) or type(error).__name__
    return reason if str(file) in reason else f"{file}: {reason}"


def check_complete(skipped: Sequence[str], count: int) -> None:
    """Raise UnfinishedError if images were skipped.

    Args:
        skipped: From :func:`run_on_files`.
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
