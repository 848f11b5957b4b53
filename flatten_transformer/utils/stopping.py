"""Exceptions of commands that a signal stops, that finish only part of their work, or that cannot run here."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
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


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedError(number)
