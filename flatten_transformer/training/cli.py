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
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from flatten_transformer.tasks.registry import TASKS, TaskName, task_spec
from flatten_transformer.training.callbacks import KeepBatchSize, PrintData, ReportSkipped, SaveModel, SeedEpochs
from flatten_transformer.training.checkpoints import (
    LAST,
    AtomicCheckpointIO,
    check_checkpoint,
    checkpoint_folders,
    choose_checkpoint,
)
from flatten_transformer.training.history import History
from flatten_transformer.training.interruption import SaveOnSignal
from flatten_transformer.training.lock import check_idle, locked, remove_drafts
from flatten_transformer.training.logs import CurvesAsCSV, CurvesForTensorBoard
from flatten_transformer.training.process import keep_freed_memory, without_lightning_noise
from flatten_transformer.training.recipes import find_recipe
from flatten_transformer.training.summary import Summary
from flatten_transformer.training.unions import fix_order_of_types
from flatten_transformer.utils.arguments import RaisingParser, check_values
from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.suggest import did_you_mean

Stage = Literal["fit", "validate", "test"]
_CONFIG = ("--config", "-c")


def train(stage: Stage, args: Sequence[str]) -> TrainingCLI:
    """Fit, validate or test, as on the command line.

    A fit writes to a new folder, ``runs/<recipe>/version_N``: the configuration, curves for TensorBoard and as CSV, and in
    ``checkpoints`` the best and the last ``.ckpt``, ``best.safetensors`` and ``model.safetensors``.

    Args:
        stage: ``"fit"``, ``"validate"`` or ``"test"``.
        args: Command-line arguments, such as ``["--config", "digits/flatten_deit"]``.

    Returns:
        Trainer (with its last ``callback_metrics``), model and datamodule.

    Raises:
        ValueError: If an argument, a recipe or a checkpoint is invalid, or another training run holds the folder.
        FileNotFoundError: If a recipe or a checkpoint is missing.
        FloatingPointError: If the loss is not finite.
        SystemExit: On a signal, after saving; the status is 128 + signal number.
    """
    with without_lightning_noise():
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
    """Lightning's parser, raising ValueError."""


class TrainingCLI(LightningCLI):
    """Builds trainer, task and data from arguments and recipes; the caller runs them.

    Args:
        stage: Stage that will run.
        args: Arguments after the command name.
    """

    def __init__(self, stage: Stage, args: Sequence[str]) -> None:
        self.stage = stage
        args = with_recipe_paths(args)
        self.kind = kind_of(args)
        self.spec = task_spec(self.kind)
        super().__init__(
            self.spec.task,
            self.spec.data,
            trainer_class=LightningTrainer,
            parser_class=Parser,
            parser_kwargs={"prog": f"flatten {stage}", "description": f"{stage} a model by a recipe"},
            args=args,
            run=False,  # one parser, not one per stage: half the start-up, and shorter messages
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "log_every_n_steps": 1,  # metrics are logged by epoch
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data module shards its images itself
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our own options, and link the data's to the model's."""
        parser.add_argument("--task", type=TaskName, default=self.kind, help="What is learned; a recipe says it.")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="A .ckpt to resume from, or to judge; last: that of the newest run of this name.",
        )
        help_text = "Recompute activations in the backward pass: slower, in less memory."
        parser.add_argument("--grad_checkpointing", type=bool, default=False, help=help_text)
        parser.add_argument("--compile", type=bool, default=False, help="Train the model under torch.compile.")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        defaults = {"monitor": self.spec.monitor, "mode": "max", "filename": "best-{epoch}", "save_last": True}
        defaults["save_on_train_epoch_end"] = True  # after validation, the epoch does not count as processed yet
        parser.set_defaults({f"checkpoint.{name}": value for name, value in defaults.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and validate the checkpoint before anything is built."""
        fix_order_of_types(parser)
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
        """Return the newest valid checkpoint of the runs of this name; without any, a fit starts from scratch."""
        given = self.config.checkpoint.dirpath
        folders = [Path(given)] if given and (Path(given) / "last.ckpt").is_file() else checkpoint_folders(self.runs_folder())
        path, flaws = choice = choose_checkpoint(folders, resume=self.stage == "fit")
        if flaws and path is None:
            raise ValueError(f"no checkpoint can be used: {choice.text()}; leave --ckpt_path out to begin anew, or give a path")
        if path is None and self.stage != "fit":
            raise FileNotFoundError(f"no last.ckpt in {self.runs_folder()}/version_*/checkpoints: train first, or give a path")
        fresh = f"There is no checkpoint in {self.runs_folder()} yet: from the beginning"
        if path is not None and self.stage == "fit" and _is_first_process():
            check_idle(path.parent)
        skipped = f"Warning: {choice.text()}. " if flaws else ""
        rank_zero_info(printable(f"{skipped}Going on from {path}" if path else fresh))
        return None if path is None else str(path)

    def run(self) -> None:
        """Run the stage.

        Raises:
            ValueError: If the checkpoint cannot be used.
            KeyboardInterrupt: On Ctrl-C outside training.
        """
        path = self.config.ckpt_path
        try:
            getattr(self.trainer, self.stage)(self.model, datamodule=self.datamodule, ckpt_path=path, weights_only=True)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            if path is None or not _while_restoring(error):
                raise
            readable = isinstance(error, (ValueError, RuntimeError))
            reason = str(error) if readable else f"it is not what a training writes ({type(error).__name__}: {error})"
            raise ValueError(f"{printable(path)} cannot be used: {reason}") from error
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # turned into another status by Lightning
                raise error.__context__ from None
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folders of this run, and remove unfinished files of killed ones.

        Raises:
            ValueError: If another run holds one of them, or a folder given by the user holds an earlier run.
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
        """Return the folders that a fit writes to: its checkpoints' first, if any, then its logs'."""
        if self.stage != "fit" or self.config_init.trainer.fast_dev_run:
            return []
        callback = self.trainer.checkpoint_callback
        kept = [callback.dirpath] if isinstance(callback, ModelCheckpoint) else []
        return [Path(folder) for folder in (*kept, *(logger.log_dir for logger in self.trainer.loggers)) if folder]

    def _check_unused(self, folders: Sequence[Path]) -> None:
        """Raise ValueError if a folder holds another run, unless this one resumes it."""
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

    def instantiate_trainer(self, **kwargs: Any) -> LightningTrainer:
        """Build the trainer; only a real fit writes anything, to its own folder."""
        config = self.config_init.trainer
        callbacks: list[Callback] = []
        history = History()
        if self.stage == "fit" and not config.fast_dev_run:
            folder = self.runs_folder()
            version = claim_version(folder) if _is_first_process() else 0  # other ranks write nothing
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
        always = [PrintData(), KeepBatchSize(), SeedEpochs(), ReportSkipped(), SaveModel(), history]
        self.trainer_defaults["callbacks"] = [*always, *callbacks, SaveOnSignal()]
        given = config.plugins or []
        plugins = [*(given if isinstance(given, list) else [given]), AtomicCheckpointIO()]
        return super().instantiate_trainer(plugins=plugins, **kwargs)

    def runs_folder(self) -> Path:
        """Return the folder of the runs of this recipe, or of this model without a recipe."""
        root = Path(self.config.trainer.default_root_dir or "runs")
        if not self.config.config:
            return root / str(self.config.model.name)
        path = Path(str(self.config.config[-1])).resolve()
        return root / (path.parents[1].name if path.name == "config.yaml" else path.stem)  # of an earlier run, or a recipe


def keep_last(checkpoint: ModelCheckpoint) -> ModelCheckpoint:
    """Return a callback for ``last.ckpt``, and switch it off in ``checkpoint``, which updates it after better epochs alone.

    Args:
        checkpoint: Keeps the best epoch; both write to its folder.
    """
    checkpoint.save_last = False
    return ModelCheckpoint(checkpoint.dirpath, LAST, enable_version_counter=False, save_on_train_epoch_end=True)


def _while_restoring(error: BaseException) -> bool:
    """Return whether an error arose while Lightning restored a checkpoint."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_globals["__name__"].endswith("checkpoint_connector") and frame.f_code.co_name.lstrip("_").startswith("re")
        for frame in frames  # restore… and resume…
    )


def _is_first_process() -> bool:
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]  # Lightning sets it, unannotated


def with_recipe_paths(args: Sequence[str]) -> list[str]:
    """Return the arguments with recipe names replaced by paths.

    Example:
        >>> with_recipe_paths(["--config=digits/flatten_deit"])[1].endswith("flatten_deit.yaml")
        True
    """
    parts = [part for arg in args for part in (arg.split("=", 1) if arg.startswith(("--config=", "--task=")) else [arg])]
    return [str(find_recipe(arg)) if before in _CONFIG else arg for before, arg in zip(["", *parts], parts, strict=False)]


def kind_of(args: Sequence[str]) -> TaskName:
    """Return the task that the arguments name: by ``--task``, or else in the last recipe that names one.

    Args:
        args: Result of :func:`with_recipe_paths`.

    Raises:
        ValueError: If there is no such task.

    Example:
        >>> kind_of(["--task", "classify"])
        'classify'
    """
    pairs = list(itertools.pairwise(args))
    named = [value for option, value in pairs if option == "--task"]
    if not named:
        recipes = [yaml.safe_load(Path(value).read_text("utf-8")) for option, value in pairs if option in _CONFIG]
        named = [recipe["task"] for recipe in recipes if "task" in recipe] or ["classify"]
    if named[-1] not in TASKS:
        raise ValueError(f"no task {named[-1]!r}: {did_you_mean(str(named[-1]), TASKS)}")
    kind: TaskName = named[-1]
    return kind


def claim_version(folder: Path) -> int:
    """Create the first free ``folder/version_N`` and return N; safe between processes.

    Example:
        >>> folder = getfixture("tmp_path") / "digits"
        >>> claim_version(folder), claim_version(folder)
        (0, 1)
    """
    for version in itertools.count():
        try:
            (folder / f"version_{version}").mkdir(parents=True)  # atomic: fails for all but one process
        except FileExistsError:
            continue
        break
    return version
