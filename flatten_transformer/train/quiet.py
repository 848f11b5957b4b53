"""Keeping what users cannot act on off their screens, while something runs and no longer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Where Lightning logs advertisements and what it found out about itself.
_LOGGER = logging.getLogger("lightning.pytorch.utilities.rank_zero")
_CHATTER = ("💡", "TPU available", "GPU available: False", "Loading `train_dataloader`")
_WARNINGS = (
    # more processes cost more than they bring where the images lie in memory; --data.num_workers is there for the rest
    "The '.*_dataloader' does not have many workers",
    # before the first validation there is nothing to choose by; a metric that is still missing after it raises
    r"`ModelCheckpoint\(monitor='val/\w+'\)` could not find the monitored key",
    # a run that goes on from a checkpoint keeps its own in a new folder
    "The dirpath has changed",
    # it holds our lock; a folder with another training is refused
    "(Experiment logs|Checkpoint) directory .* exists and is not empty",
    # a resumed epoch begins behind the batches that were seen, which Lightning cannot know
    "You're resuming from a checkpoint that ended before the epoch ended",
    # Lightning 2.6 with torch 2.15 and jsonargparse 4.53: theirs to mend
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"\s*By default only one JsonargparseDeprecationWarning",
    r"\s*(``instantiate_classes``|skip_none parameter) was deprecated",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the lines and warnings of Lightning that no user can act on.

    Example:
        >>> with quiet():
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
    return not record.getMessage().startswith(_CHATTER)
