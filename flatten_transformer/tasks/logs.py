"""Loggers whose errors name what could not be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an error of the file system that names no file, as one about a full disk, name ``path``.

    Example:
        >>> with naming("metrics.csv"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'metrics.csv'
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


class CurvesAsCSV(CSVLogger):
    """Lightning's, whose errors name the file."""

    def save(self) -> None:
        """Write what was logged."""
        with naming(Path(self.log_dir) / self.experiment.NAME_METRICS_FILE):
            super().save()


class CurvesForTensorBoard(TensorBoardLogger):
    """Lightning's, whose errors name the folder: a thread writes, and its errors come with the next thing that is logged."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log."""
        with naming(self.log_dir):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write what was logged."""
        with naming(self.log_dir):
            super().save()

    def finalize(self, status: str) -> None:
        """Write what was logged, and end."""
        with naming(self.log_dir):
            super().finalize(status)
