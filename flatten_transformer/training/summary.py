"""Tables of the plan and the result of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from flatten_transformer.models.cost import count_parameters
from flatten_transformer.tasks.registry import task_spec
from flatten_transformer.tasks.task import Task
from flatten_transformer.training.history import History, best_row, draw_curves
from flatten_transformer.utils.terminal import cell, say


class Summary(Callback):
    """Print the plan at the start and the result at the end, and draw plots beside the logs.

    Args:
        history: Metrics by epoch.
        folder: Folder of the plots; None draws none.
    """

    def __init__(self, history: History, folder: Path | None) -> None:
        self.history = history
        self.folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the plan."""
        assert isinstance(pl_module, Task)
        rows = plan_rows(trainer, pl_module)  # on every device: the folder is broadcast
        if trainer.is_global_zero:
            _print("Training", rows)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and plot the result."""
        assert isinstance(pl_module, Task)
        if trainer.is_global_zero and self.history.rows:
            _print("Trained", result_rows(self.history, task_spec(pl_module.task_name).monitor))
            for picture in self._draw(pl_module):
                say(f"See {picture}", stderr=True)

    def _draw(self, task: Task) -> list[Path]:
        if self.folder is None or find_spec("matplotlib") is None:
            return []
        curves = self.folder / "curves.png"
        draw_curves(self.history.rows, task_spec(task.task_name).monitor, curves)
        return [curves, *task.draw_report(self.folder)]


def plan_rows(trainer: Trainer, task: Task) -> dict[str, str]:
    """Return the plan of a training run, by name."""
    share, macs = task.data.share, task.count_macs()
    pieces = f" = {share.images} x {trainer.world_size} devices x {share.micro_batches}"
    if share.images == task.data.batch_size:
        pieces = ""
    steps = int(trainer.estimated_stepping_batches)
    return {
        "model": task.name,
        "parameters": f"{count_parameters(task.model) / 1e6:.2f} M",
        **({"MACs an image": f"{macs / 1e9:.3f} G"} if macs else {}),
        "classes": str(task.data.num_classes),
        "images a step": f"{task.data.batch_size}{pieces}",
        "steps": f"{steps:,} ({trainer.max_epochs} epochs)" if trainer.max_epochs != -1 else f"{steps:,}",
        "device": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
        "precision": str(trainer.precision),
        **({"folder": str(trainer.log_dir)} if trainer.log_dir else {}),
    }


def result_rows(history: History, monitor: str) -> dict[str, str]:
    """Return the result of a training run, by name: the metrics of its best epoch, and the median throughput.

    Example:
        >>> history = History()
        >>> history.rows = [{"epoch": e, "images_per_second": 10.0 + e, "val/accuracy": 0.5, "val/loss": 1.0} for e in range(3)]
        >>> result_rows(history, "val/accuracy")
        {'best epoch': '0', 'val/accuracy': '50.0 %', 'images a second': '11'}
    """
    best = best_row(history.rows, monitor)
    chosen = history.rows[-1] if best is None else best
    fractions = {name: f"{value:.1%}".replace("%", " %") for name, value in chosen.items() if _is_fraction(name)}
    return {
        **({} if best is None else {"best epoch": f"{best['epoch']:.0f}"}),
        **fractions,
        "images a second": f"{median(row['images_per_second'] for row in history.rows):.0f}",
    }


def _is_fraction(name: str) -> bool:
    return name.startswith("val/") and not name.endswith("loss")


def _print(title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows.items():
        table.add_row(*map(cell, row))
    Console(stderr=True).print(table)
