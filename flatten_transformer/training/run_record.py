"""What the folder of a run says of it, read without the libraries that trained it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.training.lock import is_held

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunRecord:
    """A run, by the files in its folder.

    Args:
        folder: Holds ``config.yaml``.

    Raises:
        ValueError: On use, if one of the files is malformed.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its settings."""
        try:
            content = yaml.load((self.folder / "config.yaml").read_text("utf-8"), _LOADER)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.folder / 'config.yaml'} cannot be read as YAML ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{self.folder / 'config.yaml'} is not the configuration of a run")
        return content

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its settings by their full names, without those of place and process."""
        return {name: value for name, value in _flat(self.config) if not name.startswith(_ELSEWHERE)}

    @cached_property
    def result(self) -> dict[str, Any]:
        """Its ``result.json``; empty if it has not ended."""
        path = self.folder / "result.json"
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """Metrics by epoch, from ``metrics.csv``: what the run itself has trained."""
        path, rows = self.folder / "metrics.csv", dict[int, dict[str, float]]()
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                for line in csv.DictReader(file):
                    values = {name: float(value) for name, value in line.items() if value}
                    rows.setdefault(int(values.get("epoch", 0)), {}).update(values)
        return [row for row in rows.values() if any(name.startswith("val/") for name in row)]

    @property
    def monitor(self) -> str:
        """The metric by which its best epoch is chosen."""
        return str(self.result.get("monitor") or self.config.get("checkpoint", {}).get("monitor") or "val/accuracy")

    @property
    def best(self) -> Mapping[str, float]:
        """Metrics of the best epoch, ``epoch`` counted from 1; empty before the first."""
        if self.result:
            return dict(self.result["best"])
        rows = [row for row in reversed(self.rows) if self.monitor in row]
        choose = min if self.config.get("checkpoint", {}).get("mode") == "min" else max
        row = choose(rows, key=lambda row: row[self.monitor], default={})
        return {**row, "epoch": row["epoch"] + 1} if row else {}

    @property
    def epochs(self) -> int:
        """Epochs done, those of the runs that it resumed included."""
        if self.result:
            return int(self.result["last"]["epoch"])
        return int(self.rows[-1]["epoch"]) + 1 if self.rows else 0

    @property
    def state(self) -> str:
        """``running``, ``done``, ``stopped`` where it can go on, or ``failed``."""
        checkpoints = Path((self.config.get("checkpoint") or {}).get("dirpath") or self.folder / "checkpoints")
        if any(is_held(folder) for folder in (checkpoints, self.folder)):
            return "running"
        if self.result:
            return "done"
        return "stopped" if (checkpoints / "last.ckpt").is_file() else "failed"

    @property
    def seconds(self) -> float | None:
        """Time of the training: since it was last resumed, or until the last epoch that it has written."""
        if self.result:
            return float(self.result["seconds"])
        start, metrics = self.folder / "config.yaml", self.folder / "metrics.csv"
        return metrics.stat().st_mtime - start.stat().st_mtime if metrics.is_file() else None


_ELSEWHERE = ("trainer.logger", "trainer.default_root_dir", "checkpoint.dirpath", "ckpt_path", "name")


def find_runs(root: Path) -> list[RunRecord]:
    """Return the runs below a folder, by name, the newest of a recipe last.

    Args:
        root: Folder of all runs, of those of a recipe, or of one run.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: give the folder of runs, or of one of them")
    runs = [RunRecord(path.parent) for path in root.rglob("config.yaml")]
    if not runs:
        raise FileNotFoundError(f"no run in {root}: flatten fit makes one, with a config.yaml in its folder")
    return sorted(runs, key=lambda run: (run.folder.parent, (run.folder / "config.yaml").stat().st_mtime))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value
