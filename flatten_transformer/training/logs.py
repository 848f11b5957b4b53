"""Lightning's loggers, with file names in their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from flatten_transformer.utils.atomic_file import naming


class CurvesAsCSV(CSVLogger):
    """CSV logger whose errors name the file."""

    def save(self) -> None:
        """Flush."""
        with naming(Path(self.log_dir) / "metrics.csv"):
            super().save()


class CurvesForTensorBoard(TensorBoardLogger):
    """TensorBoard logger whose errors name the folder; errors of its writer thread surface at the next call."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log metrics."""
        with naming(Path(self.log_dir)):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Flush."""
        with naming(Path(self.log_dir)):
            super().save()

    def finalize(self, status: str) -> None:
        """Flush and close."""
        with naming(Path(self.log_dir)):
            super().finalize(status)
