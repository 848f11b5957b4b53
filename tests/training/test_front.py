"""What `flatten fit` says to whoever types it for the first time."""

import re
from pathlib import Path

import pytest

from flatten_transformer.cli import main
from flatten_transformer.training.arguments import Stage
from flatten_transformer.training.front import _OWN, screen
from flatten_transformer.training.recipes import recipe_names
from flatten_transformer.training.short_options import short_options

STAGES: tuple[Stage, ...] = ("fit", "validate", "test")


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_fits_on_a_screen_and_names_what_exists(stage: Stage) -> None:
    lines = screen(stage).splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= 120
    known = {"help-all", "print_config", *_OWN, *short_options("classify")}
    assert {*re.findall(r"--([\w-]+)", screen(stage))} <= known
    assert {*re.findall(r"--config ([a-z/_]+) ", screen(stage))} <= {*recipe_names(), "runs/finetune/version_"}


@pytest.mark.parametrize("command", ["fit", "fit --data.root pets/ --lr 1e-3"])
def test_without_a_recipe_the_recipes_are_listed_and_nothing_is_trained(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    printed = capfd.readouterr()
    assert all(name in printed.out for name in recipe_names())
    (line,) = printed.err.splitlines()
    assert f"flatten {command.split()[0]} needs a recipe" in line
    assert not list(tmp_path.iterdir())
