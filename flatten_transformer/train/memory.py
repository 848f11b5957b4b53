"""The allocator of the C library, told to keep what is freed."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_MOST = 2**31 - 1  # bytes: the largest number that mallopt takes


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors on the CPU free, for the next step's.

    glibc gives large blocks back to the system when they are freed, and gets them again page by page, each filled with
    zeros first: a good part of a training step. What the process has once taken stays its own from here on. Where the
    environment says how to allocate (``MALLOC_…_``, ``GLIBC_TUNABLES``) it is obeyed; other C libraries do as they do.

    Source: mallopt(3).

    Example:
        >>> keep_freed_memory()
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _MOST)
    library.mallopt(_TRIM_THRESHOLD, _MOST)
