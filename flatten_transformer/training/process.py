"""Process-wide settings of a training: which messages Lightning prints, and how glibc allocates."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_only

# Lightning's logger for tips and for what it detected.
_LOGGER = logging.getLogger("lightning.pytorch.utilities.rank_zero")
_NOISE = ("💡", "TPU available", "GPU available: False", "Loading `train_dataloader`")
_WARNINGS = (
    # more workers cost more than they bring for images in memory; --data.num_workers is there for the rest
    "The '.*_dataloader' does not have many workers",
    # nothing to choose by before the first validation; a metric that is still missing after it raises
    r"`ModelCheckpoint\(monitor='val/\w+'\)` could not find the monitored key",
    # a resumed run keeps its checkpoints in a new folder
    "The dirpath has changed",
    # it holds our lock; a folder with another training is refused
    "(Experiment logs|Checkpoint) directory .* exists and is not empty",
    # a resumed epoch skips the batches already seen, which Lightning cannot know
    "You're resuming from a checkpoint that ended before the epoch ended",
    # Lightning 2.6 with torch 2.15 and jsonargparse 4.53: to be fixed upstream
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"\s*By default only one JsonargparseDeprecationWarning",
    r"\s*(``instantiate_classes``|skip_none parameter) was deprecated",
)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_MAX_BYTES = 2**31 - 1  # largest value that mallopt takes


@contextmanager
def without_lightning_noise() -> Iterator[None]:
    """Drop Lightning's log lines and warnings that no user can act on.

    Example:
        >>> with without_lightning_noise():
        ...     warnings.warn("The 'val_dataloader' does not have many workers which may be a bottleneck.")
    """
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        _LOGGER.addFilter(_is_news)
        try:
            yield
        finally:
            _LOGGER.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


def keep_freed_memory() -> None:
    """Let this process keep the memory that freed CPU tensors leave, for the next step's.

    glibc returns large blocks to the system when they are freed, and gets them back page by page, each zeroed first: a good
    part of a training step. From here on the process keeps all it has ever taken. An environment that configures the
    allocator (``MALLOC_…_``, ``GLIBC_TUNABLES``) is obeyed; other C libraries are left alone.

    Source: mallopt(3).

    Example:
        >>> keep_freed_memory()
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _MAX_BYTES)
    library.mallopt(_TRIM_THRESHOLD, _MAX_BYTES)


def is_first_process() -> bool:
    """Return whether this process is the one that writes."""
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]  # Lightning sets it, unannotated
