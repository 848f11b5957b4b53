"""Progress of long work on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from flatten_transformer.utils.printable import lasting, printable

Part = TypeVar("Part")
_PATIENCE_S = 2.0  # before a bar over quick parts appears
_FRAME_S = 0.1  # between two pictures of it
_QUIET_S = 30.0  # at least, between two lines about quick parts
_BAR = "{bar:20} {n_fmt} of {total_fmt} done, {remaining} left: {desc}"
_bars: list[Any] = []  # on the terminal now


@contextmanager
def track(
    parts: Collection[Part], describe: Callable[[Part], str] = str, *, done: int = 0, quick: bool = False
) -> Iterator[Iterator[Part]]:
    """Show which part of long work is at hand, how many there are, and about how long the rest takes.

    On a terminal that is a bar, which goes away at the end; elsewhere, as in ``2> log.txt``, a line at the start of each part.
    Nothing runs in the background that could disturb a measurement.

    Args:
        parts: What is left to do.
        describe: Returns the description of a part; it needs no escaping.
        done: Parts that were done before, in addition to ``parts``.
        quick: The parts are many, of a second or less each: a bar after two seconds, a line every half minute.

    Yields:
        An iterator over the parts.

    Example:
        >>> with track(["cat", "dog"], done=1) as animals:
        ...     print(*animals)
        cat dog
    """
    show = _bar if sys.stderr.isatty() else _lines
    shown = show(parts, describe, done, quick)
    try:
        yield shown
    finally:
        shown.close()


def _lines(parts: Collection[Part], describe: Callable[[Part], str], done: int, quick: bool) -> Generator[Part, None, None]:
    start_s = time.monotonic()
    due_s = start_s + _QUIET_S * quick
    for number, part in enumerate(parts):
        now_s = time.monotonic()
        if now_s >= due_s:
            left = f"; about {lasting((len(parts) - number) * (now_s - start_s) / number)} left" if number else ""
            note(f"{done + number + 1:,} of {done + len(parts):,}: {describe(part)}{left}")
            due_s = now_s + _QUIET_S * quick
        yield part


def _bar(parts: Collection[Part], describe: Callable[[Part], str], done: int, quick: bool) -> Generator[Part, None, None]:
    from tqdm import tqdm  # type: ignore[import-untyped]  # comes with timm, without annotations

    looks = {"bar_format": _BAR, "leave": False, "dynamic_ncols": True, "smoothing": 0, "miniters": 0}
    bar = tqdm(total=done + len(parts), initial=done, delay=_PATIENCE_S * quick, **looks)
    _bars.append(bar)
    due_s = 0.0
    try:
        for number, part in enumerate(parts):
            now_s = time.monotonic()
            if now_s >= due_s:  # drawing takes longer than many a quick part
                bar.update(done + number - bar.n)
                bar.set_description_str(printable(describe(part)), refresh=not quick)
                due_s = now_s + _FRAME_S * quick
            yield part
    finally:
        _bars.remove(bar)
        bar.close()


@contextmanager
def above_bars() -> Iterator[None]:
    """Let what is printed stand above the bars on the terminal.

    Example:
        >>> with above_bars():
        ...     print("a finding")
        a finding
    """
    if not _bars:
        yield
        return
    with type(_bars[0]).external_write_mode(file=sys.stdout):
        yield


def note(text: str) -> None:
    """Write a line to stderr, beginning with the name of the command, above the bars.

    Args:
        text: Names and paths in it need no escaping.
    """
    with above_bars():
        sys.stderr.write(f"flatten: {printable(' '.join(text.split()))}\n")
