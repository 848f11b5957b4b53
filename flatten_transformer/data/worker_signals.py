"""Signal handling of loader workers: signals sent to the process group are left to the training process."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_parent(worker: int) -> None:
    """Block SIGINT, SIGTERM and SIGHUP in a loader worker, except SIGTERM from its parent.

    Ctrl-C, ``timeout`` and SLURM signal the whole process group, but the parent needs its workers until it has saved.

    Args:
        worker: Worker id, unused.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
