"""What an option means does not depend on what was imported first."""

import typing
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import Any, Optional, Union

import pytest
from jsonargparse import ArgumentParser

from flatten_transformer.tasks.registry import TASKS
from flatten_transformer.training.cli import TrainingCLI
from flatten_transformer.training.unions import fix_order_of_types
from tests.runs import RECIPE

TEXTS = ("1", "1.0", "-1", "true", "null", "word", "warn", "16", "00:12:00:00", "0,1", "{hours: 1}")
SIZES = "{img_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}"


@pytest.fixture
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The unions among the types of all options of a task's training, by name."""
    parsers: list[Any] = []

    def keep(cli: object, parser: Any, args: object) -> None:
        parsers.append(parser)
        raise InterruptedError

    monkeypatch.setattr(TrainingCLI, "parse_arguments", keep)
    with pytest.raises(InterruptedError):
        TrainingCLI("fit", ["--config", RECIPE, "--task", request.param])
    hints = {action.dest: getattr(action, "_typehint", None) for action in parsers[0]._actions}
    unions = {name: hint for name, hint in hints.items() if typing.get_origin(hint) in (Union, UnionType)}
    return {name: hint for name, hint in unions.items() if not name.endswith(".help")}


def meanings(hint: Any) -> list[str]:
    """What each text is read as; a path and a number mean what is written, but 1 is not 1.0."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--option", type=hint)
    fix_order_of_types(parser)
    return [_meaning(parser, text) for text in TEXTS]


def _meaning(parser: ArgumentParser, text: str) -> str:
    try:
        return str(parser.parse_args([f"--option={text}"]).option)
    except Exception:
        return "refused"


@pytest.mark.parametrize("options", TASKS, indirect=True)
def test_the_order_of_an_options_types_changes_no_meaning(options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    assert {"trainer.limit_val_batches", "trainer.max_time", "trainer.devices", "checkpoint.dirpath"} <= options.keys()
    for name, hint in options.items():
        if request.node.callspec.id != "classify" and name.startswith(("trainer.", "checkpoint.")):
            continue  # the same in every task
        backwards: Any = Union[tuple(reversed(typing.get_args(hint)))]  # noqa: UP007
        assert meanings(backwards) == meanings(hint), name


def test_one_batch_is_one_batch_where_another_library_has_turned_the_types_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for forget in typing._cleanups:  # type: ignore[attr-defined]
        forget()
    turned = [Optional[float | int | None], Optional[dict[str, int] | timedelta | str | float | int | None]]  # noqa: UP045
    assert str(Optional[int | float | None]) == str(turned[0])  # noqa: UP045  # the trap is set
    args = [
        "--config",
        RECIPE,
        "--model.model_args",
        SIZES,
        "--data.img_size",
        "16",
        "--trainer.accelerator",
        "cpu",
        "--trainer.logger",
        "false",
    ]
    args += ["--seed_everything", "0"]
    for limit in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "val_check_interval"):
        args += [f"--trainer.{limit}", "1"]
    config = TrainingCLI("test", [*args, "--trainer.limit_predict_batches", "1.0"]).config.trainer
    limits = (config.limit_train_batches, config.limit_val_batches, config.limit_test_batches, config.overfit_batches)
    assert [type(limit) for limit in (*limits, config.val_check_interval)] == [int] * 5
    assert type(config.limit_predict_batches) is float
