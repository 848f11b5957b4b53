"""The result of a training: the epoch whose weights are recommended, the last one, and what is kept of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from flatten_transformer.training.history import Row
from flatten_transformer.utils.metric_names import metric_name
from flatten_transformer.utils.printable import count
from flatten_transformer.utils.terminal import cell

_MIB = 2**20


@dataclass(frozen=True)
class Result:
    """What a training came to.

    Args:
        monitor: Metric by which the best epoch was chosen, on validation data.
        best: Metrics of that epoch, whose weights are in ``model.safetensors``.
        last: Metrics of the last epoch, whose weights are in ``last.safetensors``.
        images_per_second: Median training throughput of the epochs, all devices together.
        folder: Folder of checkpoints and models; None if none are kept.
    """

    monitor: str
    best: Row
    last: Row
    images_per_second: float
    folder: Path | None = None

    def table(self) -> Table:
        """Return a table of the metrics of both epochs.

        Example:
            >>> best, last = ({"epoch": epoch, "val/accuracy": 0.9 - epoch / 100, "val/loss": 1.0} for epoch in (1, 2))
            >>> from rich.console import Console
            >>> Console(width=60).print(Result("val/accuracy", best, last, 0.25).table())  # doctest: +NORMALIZE_WHITESPACE
            Trained
            ┏━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━┓
            ┃                     ┃ best epoch 2 ┃ last epoch 3 ┃
            ┡━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━┩
            │ validation accuracy │       89.0 % │       88.0 % │
            │ images a second     │         0.25 │              │
            └─────────────────────┴──────────────┴──────────────┘
        """
        table = Table("", title="Trained", title_justify="left")
        for title, row in (("best", self.best), ("last", self.last)):
            table.add_column(f"{title} epoch {number_of(row)}", justify="right")
        for name in filter(_is_share, self.best):
            table.add_row(
                cell(metric_name(name)), *(_percent(row[name]) if name in row else "" for row in (self.best, self.last))
            )
        table.add_row("images a second", rate(self.images_per_second), "")
        if self.folder is not None:
            table.add_row("kept", *_sizes(self.folder))
        return table

    def sentences(self) -> list[str]:
        """Return which file to use, and how; none if nothing is kept.

        Example:
            >>> folder = getfixture("tmp_path")
            >>> (folder / "model.safetensors").touch()
            >>> row = {"epoch": 4, "val/accuracy": 0.9}
            >>> Result("val/accuracy", row, row, 100.0, folder).sentences()[0].replace(str(folder), "FOLDER")
            'Use FOLDER/model.safetensors: epoch 5, the best by validation accuracy, 90.0 %.'
        """
        if self.folder is None or not (self.folder / "model.safetensors").is_file():
            return []
        model = self.folder / "model.safetensors"
        value = f", {_percent(self.best[self.monitor])}" if _is_share(self.monitor) and self.monitor in self.best else ""
        chosen = f"the best by {metric_name(self.monitor)}{value}" if self.monitor in self.best else "the last"
        last = f" The last, of epoch {number_of(self.last)}, is last.safetensors beside it."
        return [
            f"Use {model}: epoch {number_of(self.best)}, {chosen}.{last if (self.folder / 'last.safetensors').is_file() else ''}",
            f"flatten predict IMAGE --checkpoint {model}",
        ]

    def json(self, seconds: float) -> str:
        """Return the result as JSON, epochs counted from 1.

        Args:
            seconds: Time of the training, since it was last resumed.
        """
        epochs = {name: {**row, "epoch": number_of(row)} for name, row in (("best", self.best), ("last", self.last))}
        content = {"monitor": self.monitor, **epochs, "images_per_second": self.images_per_second, "seconds": round(seconds, 1)}
        return json.dumps(content, indent=2) + "\n"


def number_of(row: Row) -> int:
    """Return the number of an epoch, from 1."""
    return int(row["epoch"]) + 1


def rate(value: float) -> str:
    """Return a throughput with at least two digits.

    Example:
        >>> rate(468.9), rate(4.21), rate(0.042)
        ('469', '4.2', '0.042')
    """
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _is_share(name: str) -> bool:
    return name.startswith("val/") and not name.endswith("loss")


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _sizes(folder: Path) -> tuple[str, str]:
    """Return how many checkpoints there are, and the space of all files."""
    files = [path for path in folder.iterdir() if path.suffix in (".ckpt", ".safetensors")]
    checkpoints = sum(path.suffix == ".ckpt" for path in files)
    return count(checkpoints, "checkpoint"), f"{sum(path.stat().st_size for path in files) / _MIB:.1f} MiB"
