"""The documents name no command and no option that does not exist, and every short name of one."""

import inspect
import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest

from flatten_transformer import commands
from flatten_transformer.cli import COMMANDS, LIGHT, TRAINING
from flatten_transformer.tasks.registry import TASKS
from flatten_transformer.training.arguments import task_of
from flatten_transformer.training.recipes import find_recipe, full_name
from flatten_transformer.training.short_options import short_options
from tests.training.test_short_options import options_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = [
    *(page for page in PAGES if page.name != "CONTRIBUTING.md"),
    *sorted((ROOT / "recipes").rglob("*.yaml")),
    ROOT / "notebooks" / "fine_tune.ipynb",
]
FRONT = {"help", "help-all", "print_config"}
OTHERS = {"node_rank"}  # of torchrun
OPEN = ("model.model_args.", "trainer.logger.")  # what is below them belongs to a model or a logger
COMMAND = re.compile(
    r"(?:^(?:# )?|`|srun |_ATTN=0 |THREADS=\d |-m )flatten(?:_transformer)? (.+?)(?:`|\s#|$)", flags=re.MULTILINE
)


def written() -> list[tuple[str, str]]:
    """Return each command line in the files, without the word flatten, and where it stands."""
    found = []
    for file in FILES:
        text = re.sub(r"\s*\\\n\s*", " ", file.read_text("utf-8"))
        found += [(file.name, line) for line in COMMAND.findall(text)]
    return found


def command_of(line: str) -> str:
    words = line.split()
    return " ".join(words[:2]) if words[0] == "benchmark" else words[0]


def options_in(line: str) -> list[str]:
    return re.findall(r"(?<!\S)--([\w.-]+\w)", line)


@cache
def of_training(task: str) -> set[str]:
    return {*options_of(task), *short_options(task), "csv", *FRONT}


@cache
def of_command(name: str) -> set[str]:
    words = name.replace("-", "_").split()
    function = resolve_name(f"{commands.__name__}.{'_'.join(words)}:{words[-1]}")
    parameters = inspect.signature(function, eval_str=True).parameters
    nested = [
        f"{name}.{field.name}"
        for name, parameter in parameters.items()
        if is_dataclass(parameter.annotation)
        for field in fields(parameter.annotation)
    ]
    return {*parameters, *nested, "help", *([] if name in LIGHT else ["import"])}


def known(line: str) -> set[str]:
    command = command_of(line)
    if command not in TRAINING:
        return of_command(command)
    recipes = re.findall(r"--config (\S+)", line)
    tasks = [task_of(["--config", str(find_recipe(full_name(name)))]) for name in recipes if not _is_a_place(name)]
    return of_training(tasks[-1] if tasks else "classify")


def _is_a_place(name: str) -> bool:
    return name.endswith(".yaml") or name.isupper() or "<" in name or name == "…"


def test_every_command_in_the_documents_exists() -> None:
    lines = written()
    assert len(lines) > 80
    assert not [(file, line) for file, line in lines if command_of(line) not in {*TRAINING, *COMMANDS, "--help", "--version"}]


def test_every_option_of_a_command_in_the_documents_exists() -> None:
    lines = [(file, line) for file, line in written() if command_of(line) in {*TRAINING, *COMMANDS}]
    pairs = [(file, line, option) for file, line in lines for option in options_in(line) if not option.startswith(OPEN)]
    assert len(pairs) > 80
    assert not [pair for pair in pairs if pair[2] not in known(pair[1])]


def test_every_option_in_the_text_of_a_page_exists() -> None:
    every = set().union(*map(of_training, TASKS), *map(of_command, COMMANDS), OTHERS, {"version"})
    spans = [(page.name, span) for page in PAGES for span in re.findall(r"`(--[^`]+)`", page.read_text("utf-8"))]
    wrong = [
        (page, option) for page, span in spans for option in options_in(span) if not {option, option.replace("-", "_")} & every
    ]
    assert not [pair for pair in wrong if not pair[1].startswith(OPEN)]


@pytest.mark.parametrize("task", TASKS)
def test_every_short_option_stands_in_the_table_with_what_it_stands_for(task: str) -> None:
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `--(\w+)` \| (.*?) \|", text, flags=re.MULTILINE))
    assert short_options(task).keys() <= rows.keys()
    longs = {name: [f"`--{long.partition('=')[0]}`" for long in short.long] for name, short in short_options(task).items()}
    assert not [(name, long) for name, each in longs.items() for long in each if long not in rows[name]]
