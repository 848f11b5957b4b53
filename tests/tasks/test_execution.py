"""Options that change how a training runs, and not what it comes to."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from flatten_transformer.training.cli import train
from tests.runs import RECIPE, newest_checkpoint

SHORT = [
    *("--config", RECIPE, "--model.model_args.depth", "2"),
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_val_batches", "1", "--trainer.logger", "false"),  # which draws no pictures either
]


def weights(root: Path) -> dict[str, Tensor]:
    path = newest_checkpoint(root / "flatten_deit_tiny_patch16_224")
    assert path is not None
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return tensors


def test_recomputed_activations_give_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("fit", [*SHORT, "--trainer.default_root_dir", str(tmp_path / "kept")])
    recompute = Mock(wraps=torch.utils.checkpoint.checkpoint)
    monkeypatch.setattr("flatten_transformer.models.flatten_deit.checkpoint", recompute)
    train("fit", [*SHORT, "--grad_checkpointing", "true", "--trainer.default_root_dir", str(tmp_path / "recomputed")])
    assert recompute.call_count >= 2 * 3
    torch.testing.assert_close(weights(tmp_path / "recomputed"), weights(tmp_path / "kept"), rtol=0, atol=1e-6)


def test_a_model_that_cannot_recompute_is_refused(tmp_path: Path) -> None:
    options = ["--model.name", "dla46_c", "--model.model_args", "{}", "--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(ValueError, match="cannot recompute its activations: leave grad_checkpointing out"):
        train("fit", [*SHORT, *options, "--grad_checkpointing", "true"])


def test_a_compiled_model_is_trained_and_saved_under_its_own_names(tmp_path: Path) -> None:
    with torch.compiler.set_stance("force_eager"):  # the compiler's own work is not looked at here
        cli = train("fit", [*SHORT, "--compile", "true", "--trainer.default_root_dir", str(tmp_path / "compiled")])
    assert cli.model.model._compiled_call_impl is not None
    train("fit", [*SHORT, "--trainer.default_root_dir", str(tmp_path / "eager")])
    torch.testing.assert_close(weights(tmp_path / "compiled"), weights(tmp_path / "eager"))


def test_a_training_on_a_cpu_keeps_freed_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Mock()
    monkeypatch.setattr("flatten_transformer.training.cli.keep_freed_memory", keep)
    train("fit", [*SHORT, "--trainer.fast_dev_run", "true", "--trainer.default_root_dir", str(tmp_path)])
    keep.assert_called_once_with()


def test_mixed_precision_trains_on_a_cpu(tmp_path: Path) -> None:
    cli = train("fit", [*SHORT, "--trainer.precision", "bf16-mixed", "--trainer.default_root_dir", str(tmp_path)])
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
