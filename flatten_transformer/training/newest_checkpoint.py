"""The checkpoint that ``--ckpt_path last`` and ``best`` mean."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from flatten_transformer.training.checkpoints import best_beside, choose_checkpoint
from flatten_transformer.training.lock import check_idle
from flatten_transformer.training.process import is_first_process
from flatten_transformer.training.run_folder import Place
from flatten_transformer.utils.printable import printable


def newest_checkpoint(place: Place, given: str | None, *, resume: bool, best: bool) -> str | None:
    """Return the newest valid checkpoint of the runs of a recipe and name, and say which; None: there is none to resume.

    Args:
        place: Where these runs lie.
        given: Folder of checkpoints to look into instead, if it holds some.
        resume: Look for one to go on from, else for one to judge.
        best: Return that of the best epoch of its run.

    Raises:
        FileNotFoundError: If there is none to judge.
        ValueError: If none can be used, or its run is still going on.
    """
    folders = [Path(given)] if given else []
    if not any((folder / "last.ckpt").is_file() for folder in folders):
        folders = [run / "checkpoints" for run in place.runs if (run / "checkpoints" / "last.ckpt").is_file()]
    path, flaws = choice = choose_checkpoint(folders, resume=resume)
    if path is None and flaws:
        raise ValueError(f"no checkpoint can be used: {choice.text()}; leave --ckpt_path out to begin anew, or give a path")
    if path is None and not resume:
        raise FileNotFoundError(f"no last.ckpt of {place}: train first, or give a path")
    if path is None:
        rank_zero_info(printable(f"There is no checkpoint of {place} yet: from the beginning"))
        return None
    if resume and is_first_process():
        check_idle(path.parent)
    path = best_beside(path) if best else path
    skipped = f"Warning: {choice.text()}. " if flaws else ""
    rank_zero_info(printable(f"{skipped}{'Going on from' if resume else 'Judging'} {path}"))
    return str(path)
