"""Tables of the plan and the result of a training run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import nn

from flatten_transformer.models.cost import count_parameters
from flatten_transformer.tasks.registry import task_spec
from flatten_transformer.tasks.task import Task
from flatten_transformer.training.callbacks import kept_best
from flatten_transformer.training.history import History, best_row, draw_curves
from flatten_transformer.training.result import Result
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.printable import count
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
        self._begin = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the plan, and start the clock."""
        self._begin = time.monotonic()
        assert isinstance(pl_module, Task)
        rows = plan_rows(trainer, pl_module) | ({"folder": str(self.folder)} if self.folder else {})
        if trainer.is_global_zero:
            _print("Training", rows)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, keep and plot the result."""
        assert isinstance(pl_module, Task)
        if trainer.is_global_zero and not self._begin:
            say(f"Nothing is left to train: {count(len(self.history.rows), 'epoch')} are done; --epochs sets more", stderr=True)
        elif trainer.is_global_zero and self.history.rows:
            result = read_result(trainer, pl_module, self.history)
            Console(stderr=True).print(result.table())
            if self.folder is not None:
                seconds = time.monotonic() - self._begin
                write_atomically(self.folder / "result.json", result.json(seconds).encode())
            for sentence in result.sentences():
                say(sentence, stderr=True)
            for picture in self._draw(pl_module, result.folder):
                say(f"See {picture}", stderr=True)

    def _draw(self, task: Task, kept: Path | None) -> list[Path]:
        if self.folder is None or find_spec("matplotlib") is None:
            return []
        curves = self.folder / "curves.png"
        draw_curves(self.history.rows, task_spec(task.task_name).monitor, curves)
        with _weights_of(kept and kept / "model.safetensors", task.final_model):
            return [curves, *task.draw_report(self.folder)]


@contextmanager
def _weights_of(file: Path | None, model: nn.Module) -> Iterator[None]:
    """Lend a model the weights of its best epoch from their file; without one it keeps those of the last."""
    if file is None or not file.is_file():
        yield
        return
    last = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(load_file(file))
    try:
        yield
    finally:
        model.load_state_dict(last)


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
        "steps": f"{steps:,} ({count(trainer.max_epochs, 'epoch')})" if trainer.max_epochs != -1 else f"{steps:,}",
        "device": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
        "precision": str(trainer.precision),
    }


def read_result(trainer: Trainer, task: Task, history: History) -> Result:
    """Return the result of a finished training: the epoch whose weights are recommended, and the last one."""
    rows, checkpoints = history.rows, trainer.checkpoint_callback
    kept = kept_best(trainer)
    monitor = task_spec(task.task_name).monitor
    if isinstance(checkpoints, ModelCheckpoint) and kept is not None:
        monitor = str(checkpoints.monitor)
        best = next((row for row in reversed(rows) if row.get(monitor) == kept), None)
    else:
        best = best_row(rows, monitor)
    folder = Path(checkpoints.dirpath) if isinstance(checkpoints, ModelCheckpoint) and checkpoints.dirpath else None
    return Result(monitor, best or rows[-1], rows[-1], median(row["images_per_second"] for row in rows), folder)


def _print(title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows.items():
        table.add_row(*map(cell, row))
    Console(stderr=True).print(table)
