"""Train, judge and load models from Python, as the command line does; what this needs is imported at use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from flatten_transformer.tasks.model_file import ModelInfo
    from flatten_transformer.training.cli import TrainingCLI

_OF_THE_COMMAND_LINE = {"config", "h", "help", "help_all", "print_config", "version"}
_STAGES: Mapping[str, Literal["validate", "test"]] = {"val": "validate", "test": "test"}


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        folder: Its folder, with logs, pictures, ``result.json`` and ``checkpoints``; None if nothing was kept.
        metrics: Metrics of the best epoch, whose number, from 1, is ``epoch``; of the last if nothing was kept.
    """

    folder: Path | None
    metrics: Mapping[str, float]

    @property
    def model_file(self) -> Path:
        """The file of the best weights, for :func:`load_model` and ``flatten predict``.

        Raises:
            ValueError: If nothing was kept.
        """
        if self.folder is None:
            raise ValueError("this training kept nothing: leave fast_dev_run, trainer.logger and enable_checkpointing out")
        return self.folder / "checkpoints" / "model.safetensors"


def train(recipe: str | Path, **overrides: Any) -> Run:
    """Train by a recipe, as ``flatten fit`` does; needs the extra ``train``.

    Args:
        recipe: Name of a recipe, see ``flatten recipes``, or a YAML file.
        **overrides: Options by their short names, such as ``lr``, ``epochs``, ``data`` and ``name``, or by their long ones:
            ``**{"model.optim.opt": "sgd"}``.

    Raises:
        ValueError: If an option or the data are invalid.
        FileNotFoundError: If the recipe or the data are missing.
        FloatingPointError: If the loss is not finite.
        KeyboardInterrupt: On Ctrl-C, after saving; the same call with ``ckpt_path="last"`` goes on.

    Example:
        >>> getfixture("monkeypatch").chdir(getfixture("tmp_path"))
        >>> size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
        >>> quick = {"model.model_args": size, "trainer.limit_train_batches": 1, "trainer.enable_progress_bar": False}
        >>> run = train("digits/flatten_deit", epochs=1, img_size=16, name="small", **quick)
        >>> run.folder.as_posix(), run.metrics["epoch"], 0 <= run.metrics["val/accuracy"] <= 1
        ('runs/digits/flatten_deit/small', 1, True)
        >>> model, info = load_model(run.model_file)
        >>> info.class_names[:3]
        ['0', '1', '2']
    """
    from flatten_transformer.training.run_record import RunRecord

    cli = _run("fit", {"config": recipe}, overrides)
    folder = cli.folder
    best = RunRecord(folder).result.get("best") if folder else None
    return Run(folder, best or _metrics(cli))


def evaluate(run: Run | str | Path, split: Literal["test", "val"] = "test", **overrides: Any) -> dict[str, float]:
    """Judge the model of a run, as ``flatten test`` and ``flatten validate`` do; needs the extra ``train``.

    Args:
        run: Result of :func:`train`, the folder of a run, or a ``.ckpt`` file in it.
        split: Images to judge it on.
        **overrides: As for :func:`train`; ``ckpt_path="last"`` judges the last epoch instead of the best, ``data`` names
            other images.

    Returns:
        Metrics by name, such as ``test/accuracy``.

    Raises:
        ValueError: If there is no such split, or an option or the data are invalid.
        FileNotFoundError: If the run or its checkpoint is missing.
    """
    if split not in _STAGES:
        raise ValueError(f"split must be test or val, got {split!r}")
    place = run.folder if isinstance(run, Run) else Path(run)
    if place is None or not (place.is_file() or (place / "config.yaml").is_file()):
        raise FileNotFoundError(f"no run {place}: give the folder of a run, or a checkpoint in it")
    here = {"ckpt_path": place} if place.is_file() else {"config": place / "config.yaml", "ckpt_path": "best"}
    cli = _run(_STAGES[split], here, overrides)
    return {name: value for name, value in _metrics(cli).items() if name.startswith(f"{split}/")}


def load_model(path: str | Path) -> tuple[nn.Module, ModelInfo]:
    """Load a model that a training wrote, in evaluation mode on the CPU, with its description; needs the extra ``train``.

    Args:
        path: ``model.safetensors`` of a run.

    Returns:
        The model, and a description with ``class_names`` and ``preprocessing``, which turns a PIL image into the input.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a model file, or damaged.
    """
    from flatten_transformer.tasks import model_file

    return model_file.load_model(path)


def _run(stage: Literal["fit", "validate", "test"], given: Mapping[str, Any], overrides: Mapping[str, Any]) -> TrainingCLI:
    if alien := [name for name in overrides if name.replace("-", "_") in _OF_THE_COMMAND_LINE]:
        raise ValueError(f"{alien[0]} belongs to the command line: leave it out; the recipe or the run is the first argument")
    from flatten_transformer.training import cli

    try:
        return cli.train(stage, [f"--{name}={_text(value)}" for name, value in {**given, **overrides}.items()])
    except SystemExit as stop:  # which would end a notebook's kernel
        raise KeyboardInterrupt("the training was stopped, and has saved its state") from stop


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str).strip('"')


def _metrics(cli: TrainingCLI) -> dict[str, float]:
    return {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
