"""What the folder of a run says of it, read without the libraries that trained it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.training.lock import is_held
from flatten_transformer.utils.progress import track

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_GROUPS = {"model", "data", "trainer"}  # in the configuration of every run
_LEFT = ("checkpoints", "metrics.csv", "result.json")  # beside it
_DAMAGES = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError, csv.Error)
_MAX_DEPTH = 100  # of settings
_MAX_BYTES = 2**26  # of a file: thousands of times what a training writes


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
        with _reading(self.folder / "config.yaml") as path:
            content = _load(path.read_text("utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no options by name")
        return content

    def group(self, name: str) -> Mapping[str, Any]:
        """Return one group of its settings, such as ``model``; empty where there is none."""
        return _mapping(self.config.get(name))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its settings by their full names, without those of place and process."""
        return {name: value for name, value in _flat(self.config) if not name.startswith(_ELSEWHERE)}

    @cached_property
    def result(self) -> dict[str, Any]:
        """Its ``result.json``; empty if it has not ended."""
        if not (self.folder / "result.json").exists():
            return {}
        with _reading(self.folder / "result.json") as path:
            content = dict(json.loads(path.read_text("utf-8")))
            best, last = ({name: float(value) for name, value in content[epoch].items()} for epoch in ("best", "last"))
            seconds, epochs = float(content["seconds"]), {"best": int(best["epoch"]), "last": int(last["epoch"])}
        best, last = ({**row, "epoch": epochs[name]} for name, row in (("best", best), ("last", last)))
        return {**content, "best": best, "last": last, "seconds": seconds}

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """Metrics by epoch, from ``metrics.csv``: what the run itself has trained."""
        rows: dict[int, dict[str, float]] = {}
        if (self.folder / "metrics.csv").exists():
            with _reading(self.folder / "metrics.csv") as path, path.open(encoding="utf-8", newline="") as file:
                for line in csv.DictReader(file):
                    values = {name: float(value) for name, value in line.items() if value}
                    rows.setdefault(int(values.get("epoch", 0)), {}).update(values)
        return [{"epoch": 0, **row} for row in rows.values() if any(name.startswith("val/") for name in row)]

    @property
    def monitor(self) -> str:
        """The metric by which its best epoch is chosen."""
        return str(self.result.get("monitor") or self.group("checkpoint").get("monitor") or "val/accuracy")

    @property
    def best(self) -> Mapping[str, float]:
        """Metrics of the best epoch, ``epoch`` counted from 1; empty before the first."""
        if self.result:
            return dict(self.result["best"])
        rows = [row for row in reversed(self.rows) if self.monitor in row]
        choose = min if self.group("checkpoint").get("mode") == "min" else max
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
        checkpoints = Path(str(self.group("checkpoint").get("dirpath") or self.folder / "checkpoints"))
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
    folders = [path.parent for path in root.rglob("config.yaml")]
    with track(folders, str, quick=True) as tracked:
        runs = [run for folder in tracked if _is_run(run := RunRecord(folder))]
    if not runs:
        raise FileNotFoundError(f"no run in {root}: flatten fit makes one, with a config.yaml in its folder")
    return sorted(runs, key=lambda run: (run.folder.parent, (run.folder / "config.yaml").stat().st_mtime))


def _is_run(run: RunRecord) -> bool:
    """Return whether a ``config.yaml`` is that of a run: by its groups, or where it is damaged by what lies beside it."""
    if not (run.folder / "config.yaml").is_file():
        return False
    try:
        return run.config.keys() >= _GROUPS
    except ValueError:
        return any((run.folder / name).exists() for name in _LEFT)


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Turn all that damaged files and files of others raise into a ValueError that names the file."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES / 2**20:.0f} MiB")
        yield path
    except _DAMAGES as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path} is not what a training writes ({reason})") from None


def _load(text: str) -> Any:
    """Return what YAML says, unless it is nested so deeply that libyaml, which recurses in C, would end the process."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    return yaml.load(text, _LOADER)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value
