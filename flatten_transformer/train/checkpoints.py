"""Checkpoints of trainings: written so that none is ever half, found again, and looked at before they are used."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.digest import check_whole, damage, seal
from flatten_transformer.utils.printable import printable

LAST = "last"  # instead of a path: the newest checkpoint of the runs of that name
_CURE = "give --ckpt_path a .ckpt file of an earlier run, from runs/"
_SHOWN = 3  # checkpoints named in an error
_FIT: dict[str, type] = {  # what it takes to go on, beside the weights
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and only then puts them there: a kill or a full disk leaves the old one whole.

    Each holds a digest of itself, by which :meth:`load_checkpoint` notices any damage.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Whatever Lightning keeps.
            path: Of the file.
            storage_options: Not used.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        seal(content)
        write_atomically(Path(path), content.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint, on the CPU; nothing in it is executed unless ``weights_only`` is False.

        Args:
            path: Of the file.
            map_location: Not used.
            weights_only: As of ``torch.load``; None for True.

        Raises:
            ValueError: If the file is damaged.
        """
        check_whole(Path(path))
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only is not False)
        return found


def checkpoint_folders(runs: Path) -> list[Path]:
    """Return the folders of the runs that have a ``last.ckpt``, the newest run first.

    Args:
        runs: The folder with the runs of one name, ``version_N``.
    """
    found = {int(path.parts[-3].rpartition("_")[2]): path.parent for path in runs.glob("version_*/checkpoints/last.ckpt")}
    return [found[version] for version in sorted(found, reverse=True)]


def newest_checkpoint(runs: Path) -> Path | None:
    """Return the ``last.ckpt`` of the newest run that has one, whole or not, or None.

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
    folders = checkpoint_folders(runs)
    return folders[0] / "last.ckpt" if folders else None


class Choice(NamedTuple):
    """The checkpoint to use, if one can be used, and what is wrong with those that come before it."""

    path: Path | None
    flaws: Mapping[Path, str]

    def said(self) -> str:
        """Return the flaws in one line."""
        return ", ".join(f"{printable(str(path))} is {flaw}" for path, flaw in self.flaws.items())


def choose_checkpoint(folders: Iterable[Path], *, resume: bool) -> Choice:
    """Return the newest checkpoint that can be used: of the first folder that has one the last, or else the one of most steps.

    Args:
        folders: With checkpoints of one training each, the newest training first.
        resume: To go on from it, which takes more than its weights.
    """
    flaws: dict[Path, str] = {}
    for folder in folders:
        for path in _newest_first(folder):
            flaw = find_flaw(path, resume=resume)
            if flaw is None:
                return Choice(path, flaws)
            flaws[path] = flaw
    return Choice(None, flaws)


def _newest_first(folder: Path) -> Iterable[Path]:
    last = folder / "last.ckpt"
    if last.is_file():
        yield last
    yield from sorted((path for path in folder.glob("*.ckpt") if path != last), key=_steps, reverse=True)


def _steps(path: Path) -> int:
    return -1 if find_flaw(path, resume=True) else int(_load(path)["global_step"])


def check_checkpoint(path: Path, *, resume: bool = False) -> None:
    """Raise an error that says what to do unless ``path`` is a whole checkpoint of a training.

    Args:
        path: Of the file.
        resume: To go on from it, which takes more than its weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, such as a model file, or damaged; the message names whole ones beside it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: {_CURE}")
    flaw = find_flaw(path, resume=resume)
    if flaw is None:
        return
    others = [other for other in _newest_first(path.parent) if other != path and find_flaw(other, resume=resume) is None]
    shown = ", ".join(printable(str(other)) for other in others[:_SHOWN]) + (" …" if len(others) > _SHOWN else "")
    cure = f"whole beside it: {shown}" if others else _CURE
    raise ValueError(f"{printable(str(path))} is {flaw}: {cure}")


def find_flaw(path: Path, *, resume: bool) -> str | None:
    """Return what keeps a file from being used as a checkpoint, in words that follow "it is", or None.

    Args:
        path: Of the file.
        resume: To go on from it, which takes more than its weights.

    Raises:
        OSError: If it cannot be opened.
    """
    if (reason := damage(path)) is not None:
        return f"damaged ({reason})"
    try:
        found = _load(path)
    except Exception:  # an unpickler raises nearly everything
        return "not a checkpoint of a training"
    return _misshape(found, resume=resume)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _misshape(found: Any, *, resume: bool) -> str | None:
    if not isinstance(found, dict) or "state_dict" not in found:
        return "not a checkpoint of a training"
    weights = found["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(x, str) and isinstance(y, Tensor) for x, y in weights.items()):
        return "not a checkpoint of a training (its state_dict does not hold tensors by name)"
    if not resume:
        return None
    missing = [name for name in _FIT if name not in found]
    if missing:
        return f"without {', '.join(missing)} (it can be judged, but not resumed)"
    odd = [name for name, kind in _FIT.items() if not isinstance(found[name], kind)]
    return f"not what a training writes ({', '.join(odd)})" if odd else None
