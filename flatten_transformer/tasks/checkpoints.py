"""Checkpoints of trainings: written so that none is ever half, found again, and looked at before they are used."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from flatten_transformer.atomic_file import write_atomically

LAST = "last"  # instead of a path: the newest checkpoint of the runs of that name
_CURE = "give --ckpt_path a .ckpt file of an earlier run, from runs/"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and only then puts them there: a kill or a full disk leaves the old one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Whatever Lightning keeps.
            path: Of the file.
            storage_options: Not used.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getvalue())


def newest_checkpoint(runs: Path) -> Path | None:
    """Return the ``last.ckpt`` of the newest run that has one, or None.

    Args:
        runs: The folder with the runs of one name, ``version_N``.

    Example:
        >>> runs = getfixture("tmp_path")
        >>> for version in (9, 10):
        ...     (runs / f"version_{version}" / "checkpoints").mkdir(parents=True)
        ...     (runs / f"version_{version}" / "checkpoints" / "last.ckpt").touch()
        >>> newest_checkpoint(runs).parts[-3]
        'version_10'
    """
    found = {int(path.parts[-3].rpartition("_")[2]): path for path in runs.glob("version_*/checkpoints/last.ckpt")}
    return found[max(found)] if found else None


def check_checkpoint(path: Path) -> None:
    """Raise an error that says what to do unless ``path`` is a checkpoint of a training.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, such as a model file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: {_CURE}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        found = None
    if not isinstance(found, dict) or "state_dict" not in found:
        raise ValueError(f"{path} is not a checkpoint of a training: {_CURE}")
