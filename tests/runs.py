"""A recipe of a tiny model on the digits, and what its runs leave."""

from __future__ import annotations

from pathlib import Path

from flatten_transformer.training.run_folder import runs_of

RECIPE = str(Path(__file__).parent / "recipes" / "flatten_deit_tiny_patch16_224.yaml")


def newest_checkpoint(runs: Path) -> Path | None:
    """Return the ``last.ckpt`` of the newest run that has one, or None."""
    paths = [run / "checkpoints" / "last.ckpt" for run in runs_of(runs, None)]
    return next((path for path in paths if path.is_file()), None)
