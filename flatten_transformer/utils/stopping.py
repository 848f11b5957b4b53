"""Exceptions of commands that a signal stops, that finish only part of their work, or that cannot run here."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class UnfinishedError(ValueError):
    """Only part of the work could be done, and is kept; the message says what is missing."""


class UnavailableError(RuntimeError):
    """This machine cannot do what was asked; the message says why."""


class StoppedError(KeyboardInterrupt):
    """A signal asked the process to end.

    Args:
        number: Signal number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise an exception, as Ctrl-C does, so that results can be kept.

    Signals already handled or ignored are left alone.

    Raises:
        StoppedError: On such a signal.

    Example:
        >>> try:
        ...     with raise_on_termination():
        ...         signal.raise_signal(signal.SIGTERM)
        ... except KeyboardInterrupt as stop:
        ...     print(stop)
        stopped by SIGTERM
    """
    ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # only the main thread may set handlers
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def telling_what_is_kept(kept: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end long work with one line that says what is kept and how to go on.

    Args:
        kept: Returns that text, at the time of the signal.

    Raises:
        KeyboardInterrupt: On such a signal; its message is the line.

    Example:
        >>> try:
        ...     with telling_what_is_kept(lambda: "2 of 3 races are in op.json"):
        ...         raise KeyboardInterrupt
        ... except KeyboardInterrupt as stop:
        ...     print(stop)
        interrupted: 2 of 3 races are in op.json
    """
    try:
        with raise_on_termination():
            yield
    except (KeyboardInterrupt, SystemExit) as end:
        stop = _as_stop(end)
        if stop is None:
            raise
        stop.args = (f"{str(stop) or 'interrupted'}: {kept()}",)
        raise stop from None


def _as_stop(end: KeyboardInterrupt | SystemExit) -> KeyboardInterrupt | None:
    """Return the signal that ended the work, also if a training inside has saved and ended with the signal's status."""
    if isinstance(end, KeyboardInterrupt):
        return end
    return StoppedError(end.code - 128) if isinstance(end.code, int) and end.code > 128 else None


def run_script(main: Callable[[], object]) -> int:
    """Run the function of a script; a signal ends it as it ends a command, with one line.

    Returns:
        The exit status: 0, or 128 + signal number, such as 130 for Ctrl-C.

    Example:
        >>> run_script(lambda: None)
        0
    """
    try:
        main()
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{str(stop) or 'interrupted'}\n")
        return 128 + (stop.number if isinstance(stop, StoppedError) else signal.SIGINT)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedError(number)
