"""Lightning's loggers, with file names in their errors, and a word on what they need."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from flatten_transformer.utils.atomic_file import naming

_PACKAGES = {  # of Lightning's loggers: module, and what pip calls it
    "CometLogger": ("comet_ml", "comet-ml"),
    "LitLogger": ("litlogger", "litlogger"),
    "MLFlowLogger": ("mlflow", "mlflow"),
    "NeptuneLogger": ("neptune", "neptune"),
    "WandbLogger": ("wandb", "wandb"),
}


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


def run_loggers(given: Any, folder: Path, root: Path) -> list[Logger]:
    """Return the loggers of a run: metrics.csv and TensorBoard's, unless others are given.

    Lightning writes the configuration where the first logger writes: if that has no folder for each run, as that of Weights &
    Biases has not, metrics.csv comes before it.

    Args:
        given: Value of ``trainer.logger``: loggers, True or None for the default, False for none.
        folder: Folder of the run.
        root: Folder of all runs.
    """
    place = (root, str(folder.parent.relative_to(root)), folder.name)
    if given in (None, True):
        return [CurvesAsCSV(*place), CurvesForTensorBoard(*place, default_hp_metric=False)]
    loggers = given if isinstance(given, list) else [given] if given else []
    if not loggers or isinstance(loggers[0], CSVLogger | TensorBoardLogger):
        return loggers
    return [CurvesAsCSV(*place), *loggers]


def check_packages(loggers: Any) -> None:
    """Raise ValueError if a logger of Lightning needs a package that is not installed.

    Args:
        loggers: Value of ``trainer.logger`` in a configuration: None, a bool, a logger's ``class_path``, or a list of those.

    Example:
        >>> check_packages({"class_path": "lightning.pytorch.loggers.TensorBoardLogger"})
    """
    for each in loggers if isinstance(loggers, list) else [loggers]:
        name = str(each["class_path"]).rpartition(".")[2] if hasattr(each, "get") and "class_path" in each else ""
        module, package = _PACKAGES.get(name, ("lightning", ""))
        if find_spec(module) is None:
            raise ValueError(f"{name} needs the package {package}, which is not installed: pip install {package}")
