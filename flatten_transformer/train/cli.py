"""`flatten fit`, `validate` and `test`: Lightning's command line with this library's task, data and defaults."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]  # ships no annotations
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from flatten_transformer.tasks.registry import TASKS, TaskName, task_spec
from flatten_transformer.train.callbacks import KeepBatchSize, ReportSkipped, SaveModel, SeedEpochs, TellData
from flatten_transformer.train.checkpoints import (
    LAST,
    AtomicCheckpointIO,
    check_checkpoint,
    checkpoint_folders,
    choose_checkpoint,
)
from flatten_transformer.train.history import History
from flatten_transformer.train.interruption import HeedSignals
from flatten_transformer.train.lock import check_idle, locked, remove_drafts
from flatten_transformer.train.logs import CurvesAsCSV, CurvesForTensorBoard
from flatten_transformer.train.memory import keep_freed_memory
from flatten_transformer.train.quiet import quiet
from flatten_transformer.train.recipes import find_recipe
from flatten_transformer.train.summary import Summary
from flatten_transformer.utils.arguments import RaisingParser, check_values
from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.suggest import hint

Stage = Literal["fit", "validate", "test"]
_CONFIG = ("--config", "-c")


def train(stage: Stage, args: Sequence[str]) -> TrainingCLI:
    """Fit, validate or test as the arguments say.

    A fit keeps everything in a new folder, ``runs/<recipe>/version_N``: the configuration, curves for
    TensorBoard and as CSV, and in ``checkpoints`` the best and the last ``.ckpt``, ``best.safetensors`` and
    ``model.safetensors``.

    Args:
        stage: ``"fit"``, ``"validate"`` or ``"test"``.
        args: The arguments of the command line, such as ``["--config", "digits/flatten_deit"]``.

    Returns:
        The trainer (with its last ``callback_metrics``), model and datamodule that were used.

    Raises:
        ValueError: If an argument, a recipe or a checkpoint is not what it should be, or another training writes to the folder.
        FileNotFoundError: If a recipe or a checkpoint is missing.
        FloatingPointError: If the loss is no longer finite.
        SystemExit: If a signal asked the training to end; its state is saved. The status is 128 and the signal's number.
    """
    with quiet():
        try:
            cli = TrainingCLI(stage, args)
            if cli.trainer.strategy.root_device.type == "cpu":
                keep_freed_memory()
            if cli.config.grad_checkpointing:
                cli.model.recompute_activations()
            if cli.config.compile:
                cli.model.model.compile()
            with cli.locked():
                cli.run()
        except MisconfigurationException as error:
            raise ValueError(str(error)) from error
    return cli


class Parser(RaisingParser, LightningArgumentParser):
    """Lightning's parser, raising what it refuses."""


class TrainingCLI(LightningCLI):
    """Builds trainer, task and data from arguments and recipes; the caller runs them.

    Args:
        stage: What the trainer will be asked to do.
        args: The arguments, without the name of the command.
    """

    def __init__(self, stage: Stage, args: Sequence[str]) -> None:
        self.stage = stage
        args = with_recipe_paths(args)
        self.kind = kind_of(args)
        self.spec = task_spec(self.kind)
        super().__init__(
            self.spec.task,
            self.spec.data,
            parser_class=Parser,
            parser_kwargs={"prog": f"flatten {stage}", "description": f"{stage} a model by a recipe"},
            args=args,
            run=False,  # one parser instead of one for each stage: half the start-up, and plainer messages
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "log_every_n_steps": 1,  # logs come by the epoch
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data module divides its images itself
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning's own command line does not have, and link what need not be said twice."""
        parser.add_argument("--task", type=TaskName, default=self.kind, help="What is learned; a recipe says it.")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="A .ckpt to resume from, or to judge; last: that of the newest run of this name.",
        )
        explained = "Recompute activations in the backward pass: slower, in less memory."
        parser.add_argument("--grad_checkpointing", type=bool, default=False, help=explained)
        parser.add_argument("--compile", type=bool, default=False, help="Train the model under torch.compile.")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        defaults = {"monitor": self.spec.monitor, "mode": "max", "filename": "best-{epoch}", "save_last": True}
        defaults["save_on_train_epoch_end"] = True  # after a validation the epoch does not count as processed yet
        parser.set_defaults({f"checkpoint.{name}": value for name, value in defaults.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the checkpoint before anything is built."""
        self.config = parser.parse_args(args)
        check_values(parser, self.config)
        if self.config.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "trainer.accumulate_grad_batches follows from the data: leave it out; data.batch_size is what a step sees, "
                f"data.device_batch_size what a device takes at once (got {self.config.trainer.accumulate_grad_batches})"
            )
        if self.config.ckpt_path == LAST:
            self.config.ckpt_path = self._last_checkpoint()
        elif self.config.ckpt_path:
            check_checkpoint(Path(self.config.ckpt_path), resume=self.stage == "fit")

    def _last_checkpoint(self) -> str | None:
        """Return the newest whole checkpoint of the runs of this name; a fit begins anew where there is none yet."""
        given = self.config.checkpoint.dirpath
        folders = [Path(given)] if given and (Path(given) / "last.ckpt").is_file() else checkpoint_folders(self.runs_folder())
        path, flaws = choice = choose_checkpoint(folders, resume=self.stage == "fit")
        if flaws and path is None:
            raise ValueError(f"no checkpoint can be used: {choice.said()}; leave --ckpt_path out to begin anew, or give a path")
        if path is None and self.stage != "fit":
            raise FileNotFoundError(f"no last.ckpt in {self.runs_folder()}/version_*/checkpoints: train first, or give a path")
        begin = f"There is no checkpoint in {self.runs_folder()} yet: from the beginning"
        if path is not None and self.stage == "fit" and _is_first_process():
            check_idle(path.parent)
        passed = f"Warning: {choice.said()}. " if flaws else ""
        rank_zero_info(printable(f"{passed}Going on from {path}" if path else begin))
        return None if path is None else str(path)

    def run(self) -> None:
        """Do what the trainer is asked to.

        Raises:
            ValueError: If the checkpoint cannot be used.
            KeyboardInterrupt: If Ctrl-C came while nothing was trained.
        """
        path = self.config.ckpt_path
        try:
            getattr(self.trainer, self.stage)(self.model, datamodule=self.datamodule, ckpt_path=path, weights_only=True)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            if path is None or not _restoring(error):
                raise
            plain = isinstance(error, (ValueError, RuntimeError))
            reason = str(error) if plain else f"it is not what a training writes ({type(error).__name__}: {error})"
            raise ValueError(f"{printable(path)} cannot be used: {reason}") from error
        except SystemExit as leave:
            if isinstance(leave.__context__, KeyboardInterrupt):  # Lightning's answer, with another status
                raise leave.__context__ from None
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of the folders that this one writes into, and remove what killed ones left in them.

        Raises:
            ValueError: If another training writes into one of them, or a folder that was given holds an earlier one.
        """
        folders = self._folders()
        if not (folders and _is_first_process()):
            yield
            return
        with locked(folders):
            self._check_unused(folders)
            remove_drafts(path for run in self.runs_folder().glob("version_*") for path in (run, run / "checkpoints"))
            yield

    def _folders(self) -> list[Path]:
        """Return the folders that a fit writes into: that of its checkpoints first, if it keeps any, and those of its logs."""
        if self.stage != "fit" or self.config_init.trainer.fast_dev_run:
            return []
        callback = self.trainer.checkpoint_callback
        kept = [callback.dirpath] if isinstance(callback, ModelCheckpoint) else []
        return [Path(folder) for folder in (*kept, *(logger.log_dir for logger in self.trainer.loggers)) if folder]

    def _check_unused(self, folders: Sequence[Path]) -> None:
        """Raise ValueError if a folder holds what another training wrote, unless this one goes on from there."""
        begin = self.config.ckpt_path
        for folder in folders:
            last = folder / "last.ckpt"
            if last.is_file() and not (begin and Path(begin).resolve().parent == folder.resolve()):
                cure = f"go on with --ckpt_path {printable(str(last))}, or give another --checkpoint.dirpath"
            elif (folder / "config.yaml").is_file():
                cure = "let its logger count versions, or give it another one"
            else:
                continue
            raise ValueError(f"{printable(str(folder))} holds another training, which this one would overwrite: {cure}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; only a real fit keeps anything, in a folder of its own."""
        config = self.config_init.trainer
        callbacks: list[Callback] = []
        history = History()
        if self.stage == "fit" and not config.fast_dev_run:
            folder = self.runs_folder()
            version = claim_version(folder) if _is_first_process() else 0  # the others write nothing
            if self.config_init.checkpoint.dirpath is None:
                self.config_init.checkpoint.dirpath = str(folder / f"version_{version}" / "checkpoints")
            if config.logger in (None, True):
                config.logger = [log(folder.parent, folder.name, version) for log in (CurvesAsCSV, CurvesForTensorBoard)]
            callbacks = [Summary(history, folder / f"version_{version}" if config.logger else None)]
            callbacks += [LearningRateMonitor("epoch")] if config.logger else []
        elif config.logger in (None, True):
            config.logger = False
        if config.fast_dev_run or config.enable_checkpointing is False:
            config.enable_checkpointing = False
            self._parser(None).callback_keys.remove("checkpoint")
        elif self.config_init.checkpoint.save_last:
            callbacks.append(keep_last(self.config_init.checkpoint))
        if not (callbacks and config.logger):
            self.save_config_callback = None
        always = [TellData(), KeepBatchSize(), SeedEpochs(), ReportSkipped(), SaveModel(), history]
        self.trainer_defaults["callbacks"] = [*always, *callbacks, HeedSignals()]
        given = config.plugins or []
        plugins = [*(given if isinstance(given, list) else [given]), AtomicCheckpointIO()]
        return super().instantiate_trainer(plugins=plugins, **kwargs)

    def runs_folder(self) -> Path:
        """Return the folder of the runs of this recipe, or of this model where there is no recipe."""
        root = Path(self.config.trainer.default_root_dir or "runs")
        if not self.config.config:
            return root / str(self.config.model.name)
        path = Path(str(self.config.config[-1])).resolve()
        return root / (path.parents[1].name if path.name == "config.yaml" else path.stem)  # an earlier run's, or a recipe


def keep_last(checkpoint: ModelCheckpoint) -> ModelCheckpoint:
    """Return the callback that keeps ``last.ckpt``, and free ``checkpoint`` of it: Lightning's follows better epochs alone.

    Args:
        checkpoint: Keeps the best epoch; both write into its folder.
    """
    checkpoint.save_last = False
    return ModelCheckpoint(checkpoint.dirpath, LAST, enable_version_counter=False, save_on_train_epoch_end=True)


def _restoring(error: BaseException) -> bool:
    """Return whether an error came while Lightning took up a checkpoint."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_globals["__name__"].endswith("checkpoint_connector") and frame.f_code.co_name.lstrip("_").startswith("re")
        for frame in frames  # restore… and resume…
    )


def _is_first_process() -> bool:
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]  # Lightning sets it, unannotated


def with_recipe_paths(args: Sequence[str]) -> list[str]:
    """Return the arguments with the paths of recipes in place of their names.

    Example:
        >>> with_recipe_paths(["--config=digits/flatten_deit"])[1].endswith("flatten_deit.yaml")
        True
    """
    apart = [part for arg in args for part in (arg.split("=", 1) if arg.startswith(("--config=", "--task=")) else [arg])]
    return [str(find_recipe(arg)) if before in _CONFIG else arg for before, arg in zip(["", *apart], apart, strict=False)]


def kind_of(args: Sequence[str]) -> TaskName:
    """Return the task that the arguments ask for: by ``--task``, or else by the last of their recipes that names one.

    Args:
        args: From :func:`with_recipe_paths`.

    Raises:
        ValueError: If there is no such task.

    Example:
        >>> kind_of(["--task", "classify"])
        'classify'
    """
    pairs = list(itertools.pairwise(args))
    asked = [value for option, value in pairs if option == "--task"]
    if not asked:
        recipes = [yaml.safe_load(Path(value).read_text("utf-8")) for option, value in pairs if option in _CONFIG]
        asked = [recipe["task"] for recipe in recipes if "task" in recipe] or ["classify"]
    if asked[-1] not in TASKS:
        raise ValueError(f"no task {asked[-1]!r}: {hint(str(asked[-1]), TASKS)}")
    kind: TaskName = asked[-1]
    return kind


def claim_version(folder: Path) -> int:
    """Make the first free folder ``folder/version_N`` and return N; no N is ever given twice.

    Example:
        >>> folder = getfixture("tmp_path") / "digits"
        >>> claim_version(folder), claim_version(folder)
        (0, 1)
    """
    for version in itertools.count():
        try:
            (folder / f"version_{version}").mkdir(parents=True)  # fails for all but one of those who try at once
        except FileExistsError:
            continue
        break
    return version
