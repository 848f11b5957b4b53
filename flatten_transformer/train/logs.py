"""Loggers whose errors name what could not be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from flatten_transformer.utils.atomic_file import naming


class CurvesAsCSV(CSVLogger):
    """Lightning's, whose errors name the file."""

    def save(self) -> None:
        """Write what was logged."""
        with naming(Path(self.log_dir) / "metrics.csv"):
            super().save()


class CurvesForTensorBoard(TensorBoardLogger):
    """Lightning's, whose errors name the folder: a thread writes, and its errors come with the next thing that is logged."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log."""
        with naming(Path(self.log_dir)):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write what was logged."""
        with naming(Path(self.log_dir)):
            super().save()

    def finalize(self, status: str) -> None:
        """Write what was logged, and end."""
        with naming(Path(self.log_dir)):
            super().finalize(status)
