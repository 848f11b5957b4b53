"""`flatten fit`, `validate` and `test`: Lightning's command line with this library's task, data and defaults."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from flatten_transformer.tasks.registry import task_spec
from flatten_transformer.training.arguments import Stage, prepare, task_of
from flatten_transformer.training.checkpoints import BEST, LAST, AtomicCheckpointIO, BestCheckpoint, check_checkpoint
from flatten_transformer.training.interruption import SaveOnSignal
from flatten_transformer.training.lock import locked, remove_drafts
from flatten_transformer.training.logs import check_packages, run_loggers
from flatten_transformer.training.newest_checkpoint import newest_checkpoint
from flatten_transformer.training.process import is_first_process, keep_freed_memory, without_lightning_noise
from flatten_transformer.training.progress import progress_callback
from flatten_transformer.training.recipes import full_name, say_full_name
from flatten_transformer.training.run_callbacks import has_bar, keep_last, run_callbacks
from flatten_transformer.training.run_folder import Place, check_name, claim, discard_unused
from flatten_transformer.training.short_options import words
from flatten_transformer.training.unions import fix_order_of_types
from flatten_transformer.training.values import check_numbers
from flatten_transformer.utils.arguments import RaisingParser, check_values
from flatten_transformer.utils.atomic_file import check_outputs
from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.stopping import UnavailableError

_SMALLER = (
    "take fewer images at once, by --data.device_batch_size, which leaves --batch_size and the result as they are; less memory "
    "is also taken by --precision bf16-mixed, --grad_checkpointing true and smaller images"
)


def train(stage: Stage, args: Sequence[str]) -> TrainingCLI:
    """Fit, validate or test, as on the command line.

    A fit writes to a new folder, ``runs/<recipe>/version_N`` or ``runs/<recipe>/<name>``: the configuration, curves for
    TensorBoard and as CSV, and in ``checkpoints`` the best and the last ``.ckpt``, ``model.safetensors`` with the best weights
    and ``last.safetensors`` with the last. One that fails before it has learned anything leaves no folder.

    Args:
        stage: ``"fit"``, ``"validate"`` or ``"test"``.
        args: Command-line arguments, such as ``["--config", "digits/flatten_deit"]``.

    Returns:
        Trainer (with its last ``callback_metrics``), model and datamodule.

    Raises:
        ValueError: If an argument, a recipe or a checkpoint is invalid, or another training run holds the folder.
        FileNotFoundError: If a recipe or a checkpoint is missing.
        FloatingPointError: If the loss is not finite.
        UnavailableError: If the memory of the device does not suffice.
        SystemExit: On a signal, after saving; the status is 128 + signal number.
    """
    with without_lightning_noise():
        try:
            cli = TrainingCLI(stage, args)
            with cli.discarding_failed_starts():
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
        except torch.OutOfMemoryError as error:
            raise UnavailableError(f"{printable(str(error).partition('. ')[0])}: {_SMALLER}") from error
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
        self.folder: Path | None = None  # of this run
        all_help = ["--help" if arg == "--help-all" else arg for arg in args]
        args = prepare(stage, all_help, say_full_name if is_first_process() else full_name)
        self.kind = task_of(args)
        self.spec = task_spec(self.kind)
        with self.discarding_failed_starts():
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
        assert isinstance(parser, Parser)
        parser.words = words(self.kind)
        parser.add_argument("--task", type=str, default=self.kind, help="What is learned; a recipe says it.")
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run: its folder in runs/<recipe>/.")
        help_text = "Module or .py file that registers attentions, models, data sets or tasks of yours; may be repeated."
        parser.add_argument("--import", type=list[str] | None, default=None, help=help_text)
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="A .ckpt to resume from, or to judge; last or best: of the newest run of this recipe and name.",
        )
        help_text = "Recompute activations in the backward pass: slower, in less memory."
        parser.add_argument("--grad_checkpointing", type=bool, default=False, help=help_text)
        parser.add_argument("--compile", type=bool, default=False, help="Train the model under torch.compile.")
        if self.stage != "fit":
            parser.add_argument("--csv", type=Path | None, default=None, help="Write the numbers of each class to this file.")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        defaults = {"monitor": self.spec.monitor, "mode": "max", "filename": "best-{epoch}", "save_last": True}
        defaults["save_on_train_epoch_end"] = True  # after validation, the epoch does not count as processed yet
        parser.set_defaults({f"checkpoint.{name}": value for name, value in defaults.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and validate the checkpoint before anything is built."""
        fix_order_of_types(parser)
        self.config = parser.parse_args(args)
        check_values(parser, self.config)
        check_numbers(self.config)
        if self.config.name is not None:
            check_name(self.config.name)
        check_packages(self.config.trainer.logger)
        if self.config.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "trainer.accumulate_grad_batches follows from the data: leave it out; data.batch_size is what a step sees, "
                f"data.device_batch_size what a device takes at once (got {self.config.trainer.accumulate_grad_batches})"
            )
        if self.config.ckpt_path in (LAST, BEST):
            best, given = self.config.ckpt_path == BEST, self.config.checkpoint.dirpath
            self.config.ckpt_path = newest_checkpoint(self.place, given, resume=self.stage == "fit", best=best)
        elif self.config.ckpt_path is not None:
            check_checkpoint(Path(self.config.ckpt_path), resume=self.stage == "fit")
        if self.stage != "fit" and self.config.csv is not None:
            check_outputs([self.config.csv], [Path(self.config.ckpt_path)] if self.config.ckpt_path else [])

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
    def discarding_failed_starts(self) -> Iterator[None]:
        """Remove the folder of this run if it ends before it has learned anything."""
        try:
            yield
        except BaseException:
            self._discard_unused()
            raise
        if self.trainer.state.finished:
            self._discard_unused()

    def _discard_unused(self) -> None:
        if self.folder is not None:
            discard_unused(self.folder, self.place.root)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folders of this run, and remove unfinished files of killed ones.

        Raises:
            ValueError: If another run holds one of them, or a folder given by the user holds an earlier run.
        """
        folders = self._folders()
        if not (folders and is_first_process()):
            yield
            return
        with locked(folders):
            self._check_unused(folders)
            remove_drafts(path for run in self.place.named for path in (run, run / "checkpoints"))
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
        config, checkpoint = self.config_init.trainer, self.config_init.checkpoint
        if config.fast_dev_run:
            config.enable_checkpointing = False
        keeps, logs = config.enable_checkpointing is not False, config.logger is not False
        real = self.stage == "fit" and not config.fast_dev_run
        folder = self._claim() if real and (logs or (keeps and checkpoint.dirpath is None)) else None
        if folder and checkpoint.dirpath is None:
            checkpoint.dirpath = str(folder / "checkpoints")
        if folder:
            config.logger = run_loggers(config.logger, folder, self.place.root)
        elif config.logger in (None, True):
            config.logger = False
        if not (real and config.logger):
            self.save_config_callback = None
        callbacks = run_callbacks(self.stage, self.config, folder if logs else None)
        if not keeps:
            self._parser(None).callback_keys.remove("checkpoint")
        elif checkpoint.save_last:
            callbacks.append(keep_last(checkpoint))
        if config.enable_progress_bar is not False and not has_bar(config.callbacks):
            callbacks.append(progress := progress_callback())
            config.enable_progress_bar = isinstance(progress, LightningBar)
        self.trainer_defaults["callbacks"] = [*callbacks, SaveOnSignal()]
        given = config.plugins or []
        plugins = [*(given if isinstance(given, list) else [given]), AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(plugins=plugins, **kwargs)
        except TypeError as error:  # as Lightning says of devices that are no number
            raise ValueError(str(error)) from error

    def _claim(self) -> Path:
        """Return the folder of this run, created; other processes than the first write nothing."""
        if not is_first_process():
            return self.place.folder / "version_0"
        self.folder = claim(self.place.folder, self.config.name)
        return self.folder

    @property
    def place(self) -> Place:
        """Where the runs of this recipe and name lie; of several recipes the last counts."""
        return Place(Path(str(self.config.config[-1])), self.config.name, Path(self.config.trainer.default_root_dir or "runs"))


def _while_restoring(error: BaseException) -> bool:
    """Return whether an error arose while Lightning restored a checkpoint."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_globals["__name__"].endswith("checkpoint_connector") and frame.f_code.co_name.lstrip("_").startswith("re")
        for frame in frames  # restore… and resume…
    )
