"""Per-epoch metrics, stored in checkpoints and plotted at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flatten_transformer.data.module import DataModule
from flatten_transformer.utils.atomic_file import write_figure

Row = dict[str, float]  # "epoch", and the last value of every metric by its name


class History(Callback):
    """Keep the metrics of every epoch, across resumed runs too.

    Attributes:
        rows: One per epoch, with the training throughput of all devices, ``images_per_second``.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._begin = 0.0
        self._seen = 0
        self._rate = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: a resumed epoch has no ``on_train_epoch_start``."""
        self._begin = time.monotonic()
        self._seen = trainer.datamodule.first_batch  # type: ignore[attr-defined]  # Lightning sets it, unannotated

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin, self._seen = time.monotonic(), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock after the last batch: validation follows."""
        if trainer.is_last_batch:
            data: DataModule = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, unannotated
            images = (batch_idx + 1 - self._seen) * data.share.images * trainer.world_size
            self._rate = images / (time.monotonic() - self._begin)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append the row of this epoch."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if isinstance(value, Tensor)}
        self.rows.append({"epoch": trainer.current_epoch, "images_per_second": self._rate, **metrics})

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.rows = list(state_dict["rows"])


def best_row(rows: Sequence[Row], monitor: str) -> Row | None:
    """Return the first row with the highest value of a metric, or None if no row has it.

    Example:
        >>> best_row([{"epoch": 0, "val/accuracy": 0.5}, {"epoch": 1, "val/accuracy": 0.75}], "val/accuracy")["epoch"]
        1
    """
    return max((row for row in rows if monitor in row), key=lambda row: row[monitor], default=None)


def draw_curves(rows: Sequence[Row], monitor: str, path: Path) -> None:
    """Plot losses and metrics by epoch into a PNG file, the best epoch marked.

    Args:
        rows: Rows of a :class:`History`.
        monitor: Metric that chooses the best epoch.
        path: PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = sorted({name for row in rows for name in row if name.startswith(("train/", "val/"))})
    losses = [name for name in names if name.endswith("loss")]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, title, group in zip(
        figure.subplots(1, 2), ("loss", "metrics"), (losses, [n for n in names if n not in losses]), strict=True
    ):
        for name in group:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else "", markersize=3, label=name)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        best = best_row(rows, monitor)
        if best is not None:
            axis.axvline(best["epoch"], color="gray", linestyle="--", linewidth=1, label=f"best {monitor}")
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    write_figure(path, figure)
