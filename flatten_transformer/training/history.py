"""Per-epoch metrics, stored in checkpoints and plotted at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flatten_transformer.data.module import DataModule
from flatten_transformer.utils.atomic_file import write_figure
from flatten_transformer.utils.metric_names import metric_name
from flatten_transformer.utils.picture_style import PALE, add_grid, legend_below, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, float]  # "epoch", counted from 0, and the last value of every metric by its name


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
    """Return the last row with the highest value of a metric, or None if no row has it.

    Example:
        >>> best_row([{"epoch": 0, "val/accuracy": 0.5}, {"epoch": 1, "val/accuracy": 0.75}], "val/accuracy")["epoch"]
        1
    """
    return max((row for row in reversed(rows) if monitor in row), key=lambda row: row[monitor], default=None)


def draw_curves(rows: Sequence[Row], monitor: str, path: Path) -> None:
    """Plot losses and metrics by epoch, counted from 1, into a PNG file, the best epoch marked.

    Args:
        rows: Rows of a :class:`History`.
        monitor: Metric that chooses the best epoch.
        path: PNG file.
    """
    with styled():
        write_figure(path, curves(rows, monitor))


def curves(rows: Sequence[Row], monitor: str) -> Figure:
    """Return the figure of :func:`draw_curves`.

    Args:
        rows: Rows of a :class:`History`.
        monitor: Metric that chooses the best epoch.
    """
    from matplotlib.ticker import PercentFormatter

    names = sorted({name for row in rows for name in row if name.startswith(("train/", "val/"))}, key=_importance)
    losses = [name for name in names if name.endswith("loss")]
    metrics = [name for name in names if name not in losses]
    longest = max(len(losses), len(metrics)) + 1  # with the best epoch
    figure = new_figure(11, 3.8 + 0.2 * -(-longest // 2))
    for axis, title, group in zip(figure.subplots(1, 2), ("loss", "metrics"), (losses, metrics), strict=True):
        _draw_lines(axis, rows, group)
        best = best_row(rows, monitor)
        if best is not None:
            label = f"best {metric_name(monitor)}: epoch {best['epoch'] + 1:.0f}"
            axis.axvline(best["epoch"] + 1, color=PALE, linestyle=(0, (1, 2)), linewidth=1.2, label=label, zorder=1)
        axis.set(title=title if len(group) != 1 else metric_name(group[0]), xlabel="epoch")
        legend_below(axis)
    if metrics:
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))  # accuracies, IoU and precision are shares
    return figure


def _importance(name: str) -> tuple[bool, bool, str]:
    """Sort the loss before its parts, and training before validation."""
    return name.count("_") > 0, not name.startswith("train/"), name


def _draw_lines(axis: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, name in enumerate(names):
        points = [(row["epoch"] + 1, row[name]) for row in rows if name in row]
        marker = "o" if len(points) < 30 else ""
        axis.plot(*zip(*points, strict=True), marker=marker, markersize=3.5, label=metric_name(name), **line_style(number))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    add_grid(axis)
