"""Signals that a whole group of processes gets, of which only the training shall heed them."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_parent(worker: int) -> None:
    """Keep SIGINT, SIGTERM and SIGHUP from ending a process that loads images, except the SIGTERM of its parent.

    A terminal's Ctrl-C, ``timeout`` and SLURM send them to all processes; the parent needs its loaders until it has saved.

    Args:
        worker: Not used; a DataLoader gives it.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
