"""`flatten runs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flatten_transformer.training.run_record import RunRecord, find_runs
from flatten_transformer.utils.printable import columns, lasting, printable
from flatten_transformer.utils.progress import track

_WIDEST = 80  # characters of what is wrong with a run
_HEADINGS = ("run", "model", "data", "epochs", "best epoch", "time", "state")


def runs(folders: Sequence[str] = (), /) -> None:
    """List runs: model, data, epochs, best metric, time and state; or compare two or more.

    Args:
        folders: The folder of runs, by default runs/, or those of two or more runs to compare.

    Raises:
        FileNotFoundError: If a folder is missing or holds no run.
        ValueError: If a run to compare is damaged; in a list its row says so.
    """
    records = [run for folder in folders or ["runs"] for run in find_runs(Path(folder))]
    compared = len(folders) > 1
    sys.stdout.write(_comparison(records) if compared else _list(records))


def _list(records: Sequence[RunRecord]) -> str:
    with track(records, lambda run: str(run.folder), quick=True) as tracked:
        rows = [_HEADINGS, *map(_row, tracked)]
    return _table(rows) + "\nflatten runs RUN RUN  compares two\n"


def _row(run: RunRecord) -> tuple[str, ...]:
    try:
        return _cells(run)
    except (ValueError, OSError) as error:
        reason = str(error).replace(f"{run.folder}/", "")
        return (str(run.folder), *["-"] * (len(_HEADINGS) - 2), f"unreadable: {reason}"[:_WIDEST])


def _cells(run: RunRecord) -> tuple[str, ...]:
    model, data, trainer = map(run.group, ("model", "data", "trainer"))
    args = model.get("model_args")
    backbone = args.get("backbone") if isinstance(args, dict) else None
    planned = trainer.get("max_epochs")
    return (
        str(run.folder),
        f"{model.get('name')} on {backbone}" if backbone else str(model.get("name")),
        " ".join(str(value) for value in (data.get("dataset"), data.get("root")) if value),
        f"{run.epochs}/{planned}" if planned else str(run.epochs),
        _best(run),
        _time(run),
        run.state,
    )


def _best(run: RunRecord) -> str:
    best = run.best
    return f"{best['epoch']:.0f}: {_value(run.monitor, best.get(run.monitor))} {run.monitor}" if best else "-"


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if name.endswith("loss") or not 0 <= value <= 1 else f"{value * 100:.1f} %"


def _comparison(records: Sequence[RunRecord]) -> str:
    """Return the metrics of runs side by side, and the settings in which they differ."""
    rows = [("", *(str(run.folder) for run in records)), ("state", *(run.state for run in records))]
    rows += [("best epoch", *(f"{run.best['epoch']:.0f}" if run.best else "-" for run in records))]
    metrics = dict.fromkeys(name for run in records for name in run.best if name.startswith("val/"))
    rows += [(name, *(_value(name, run.best.get(name)) for run in records)) for name in metrics]
    rows += [("time", *(_time(run) for run in records))]
    names = dict.fromkeys(name for run in records for name in run.settings)
    settings = [(name, *(str(run.settings.get(name, "-")) for run in records)) for name in names]
    return f"{_table(rows)}\nSettings that differ\n{_table([row for row in settings if len({*row[1:]}) > 1]) or '  none'}\n"


def _time(run: RunRecord) -> str:
    return "-" if run.seconds is None else lasting(run.seconds)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"{line}\n" for line in columns([[printable(cell) for cell in row] for row in rows]))
