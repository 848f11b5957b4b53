"""Checkpoints: written atomically, found by run, and validated before use."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.digest import check_whole, damage, seal
from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.suggest import did_you_mean

LAST, BEST = "last", "best"  # in place of a path: of the newest run of the recipe and name
_ADVICE = "give --ckpt_path a .ckpt file of an earlier run, from runs/"
_SHOWN = 3  # checkpoints named in an error
_RESUME_ENTRIES: dict[str, type] = {  # entries needed to resume, besides the weights
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: a kill or a full disk leaves the old one intact.

    Each holds its own digest, by which :meth:`load_checkpoint` detects damage.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Content, from Lightning.
            path: File path.
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
            path: File path.
            map_location: Not used.
            weights_only: As in ``torch.load``; None means True.

        Raises:
            ValueError: If the file is damaged.
        """
        check_whole(Path(path))
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only is not False)
        return checkpoint


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, where the later of equal epochs is the better one.

    On a few validation images many epochs are equal, and the first of them has learned the least. Arguments are Lightning's, and
    states are those of its class.
    """

    _taken_along: Mapping[Path, str] = {}  # checkpoints of the run that is resumed, and their place here

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, and take the best checkpoints along into the folder of a resumed run."""
        kept = {Path(path): value for path, value in state_dict["best_k_models"].items()}
        if kept and self.dirpath and state_dict.get("dirpath") != self.dirpath and all(path.is_file() for path in kept):
            here = {path: str(Path(self.dirpath) / path.name) for path in kept}
            self._taken_along = here
            paths = {name: state_dict[name] for name in ("best_model_path", "kth_best_model_path") if state_dict[name]}
            moved = {name: here[Path(path)] for name, path in paths.items()}
            models = {here[path]: value for path, value in kept.items()}
            state_dict = {**state_dict, **moved, "best_k_models": models, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ValueError if validation has no metric to choose by: before an epoch of training, not after it."""
        known = sorted(name for name in trainer.callback_metrics if name.startswith("val"))
        if self.monitor and self.monitor.startswith("val") and self.monitor not in known:
            hint = did_you_mean(self.monitor, known)
            raise ValueError(f"checkpoint.monitor is no metric of this validation, got {printable(self.monitor)!r}: {hint}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the best checkpoints of the run that is resumed."""
        for path, copy in self._taken_along.items() if trainer.is_global_zero else ():
            write_atomically(Path(copy), path.read_bytes())
        super().on_train_start(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether a checkpoint is among the best."""
        equal = current is not None and bool(current == self.best_k_models.get(self.kth_best_model_path))
        return bool(super().check_monitor_top_k(trainer, current)) or equal

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._update_best_and_save(current, trainer, monitor_candidates)
        self.best_model_path = [path for path, value in self.best_k_models.items() if value == self.best_model_score][-1]


class Choice(NamedTuple):
    """The checkpoint to use, if any is valid, and the flaws of those preferred to it."""

    path: Path | None
    flaws: Mapping[Path, str]

    def text(self) -> str:
        """Return the flaws on one line."""
        return ", ".join(f"{printable(str(path))} is {flaw}" for path, flaw in self.flaws.items())


def choose_checkpoint(folders: Iterable[Path], *, resume: bool) -> Choice:
    """Return the newest valid checkpoint: of the first folder that has one, ``last.ckpt`` or else the one with most steps.

    Args:
        folders: Checkpoint folders, newest run first.
        resume: Require the entries needed to resume, not just weights.
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


def best_beside(last: Path) -> Path:
    """Return the checkpoint of the best epoch so far, by what ``last.ckpt`` says of it.

    Args:
        last: A valid checkpoint.

    Raises:
        FileNotFoundError: If it is not beside it, as in a run that kept none, or was resumed from one.
    """
    callbacks = _load(last).get("callbacks", {})
    best = callbacks.get("SaveModel", {}).get("best")
    states = [state for name, state in callbacks.items() if name.startswith("ModelCheckpoint") and state.get("best_model_path")]
    names = [Path(state["best_model_path"]).name for state in states if best is None or best == state["best_model_score"]]
    found = [last.parent / name for name in names if (last.parent / name).is_file() and name != last.name]
    if not found:
        raise FileNotFoundError(
            f"the checkpoint of the best epoch is not beside {printable(str(last))}: give --ckpt_path last, or a path"
        )
    return found[0]


def check_checkpoint(path: Path, *, resume: bool = False) -> None:
    """Raise an error with advice unless ``path`` is a valid checkpoint.

    Args:
        path: File path.
        resume: Require the entries needed to resume, not just weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or something else such as a model file; the message names valid ones beside it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: {_ADVICE}")
    flaw = find_flaw(path, resume=resume)
    if flaw is None:
        return
    others = [other for other in _newest_first(path.parent) if other != path and find_flaw(other, resume=resume) is None]
    shown = ", ".join(printable(str(other)) for other in others[:_SHOWN]) + (" …" if len(others) > _SHOWN else "")
    cure = f"whole beside it: {shown}" if others else _ADVICE
    raise ValueError(f"{printable(str(path))} is {flaw}: {cure}")


def find_flaw(path: Path, *, resume: bool) -> str | None:
    """Return why a file cannot be used as a checkpoint, phrased to follow "it is", or None.

    Args:
        path: File path.
        resume: Require the entries needed to resume, not just weights.

    Raises:
        OSError: If it cannot be opened.
    """
    if (reason := damage(path)) is not None:
        return f"damaged ({reason})"
    try:
        content = _load(path)
    except Exception:  # unpickling raises nearly anything
        return "not a checkpoint of a training"
    return _content_flaw(content, resume=resume)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _content_flaw(content: Any, *, resume: bool) -> str | None:
    if not isinstance(content, dict) or "state_dict" not in content:
        return "not a checkpoint of a training"
    weights = content["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(x, str) and isinstance(y, Tensor) for x, y in weights.items()):
        return "not a checkpoint of a training (its state_dict does not hold tensors by name)"
    if not resume:
        return None
    missing = [name for name in _RESUME_ENTRIES if name not in content]
    if missing:
        return f"without {', '.join(missing)} (it can be judged, but not resumed)"
    wrong = [name for name, kind in _RESUME_ENTRIES.items() if not isinstance(content[name], kind)]
    return f"not what a training writes ({', '.join(wrong)})" if wrong else None
