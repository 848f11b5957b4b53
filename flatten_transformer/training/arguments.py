"""What a command line of a training says before it can be parsed: the recipes, the task, the modules to import."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.tasks.registry import TaskName, check_task
from flatten_transformer.training.recipes import find_recipe, full_name
from flatten_transformer.training.short_options import Pair, expand, join, split
from flatten_transformer.utils.import_path import import_named, module_name

Stage = Literal["fit", "validate", "test"]
_CONFIG = ("--config", "-c")
_MAPPING = "--model.model_args"


def prepare(stage: Stage, args: Sequence[str], full_name: Callable[[str], str] = full_name) -> list[str]:
    """Return the arguments with recipes by path and long options, after importing the modules that they name.

    Without a recipe, a checkpoint is judged by the configuration of its run.

    Args:
        stage: Stage that will run.
        args: Arguments after the command name.
        full_name: Gives the full name of a recipe, and may say it.

    Raises:
        ValueError: If there is no recipe, one is malformed, or a module cannot be imported.
        FileNotFoundError: If a recipe is missing.

    Example:
        >>> prepare("fit", ["--config=digits/flatten_deit", "--lr", "1e-3"])[2:]
        ['--model.optim.lr', '1e-3']
    """
    pairs = [(name, str(find_recipe(full_name(value))) if name in _CONFIG and value else value) for name, value in split(args)]
    if (config := check_recipe(stage, pairs)) is not None:
        pairs.insert(0, ("--config", str(config)))
    modules = _import_modules(pairs)
    pairs = [pair for pair in pairs if pair[0] != "--import"] + ([("--import", str(modules))] if modules else [])
    task = task_of(join(pairs))
    return join(_with_whole_mappings(split(expand(join(pairs), task))))


def task_of(args: Sequence[str]) -> TaskName:
    """Return the task that the arguments name: by ``--task``, or else in the last recipe that names one.

    Args:
        args: Arguments with recipes by path.

    Raises:
        ValueError: If there is no such task.

    Example:
        >>> task_of(["--task", "classify"])
        'classify'
    """
    pairs = split(args)
    named = [value for option, value in pairs if option == "--task"]
    named = named or [recipe["task"] for recipe in _recipes(pairs) if "task" in recipe] or ["classify"]
    check_task(named[-1])
    return str(named[-1])


def check_recipe(stage: Stage, pairs: Sequence[Pair]) -> Path | None:
    """Return the configuration of a checkpoint's run where it stands in for a recipe, or None where there is one.

    Args:
        stage: Stage that will run.
        pairs: Options and values.

    Raises:
        ValueError: If there is neither.
    """
    options = [option for option, _ in pairs]
    if {*_CONFIG} & {*options}:
        return None
    checkpoint = dict(pairs).get("--ckpt_path")
    config = Path(checkpoint or "").absolute().parent.parent / "config.yaml"
    if stage != "fit" and checkpoint and config.is_file():
        return config
    if close := [option for option in options if get_close_matches(option, _CONFIG)]:
        raise ValueError(f"unrecognized arguments: {close[0]}: did you mean --config? (see flatten {stage} --help)")
    raise ValueError(f"flatten {stage} needs a recipe: --config and one of `flatten recipes`, or a YAML file of your own")


def _with_whole_mappings(pairs: Sequence[Pair]) -> list[Pair]:
    """Return options two levels below ``model_args`` as the whole mapping above them, which a parser would lose otherwise."""
    given: dict[str, Any] = {}
    for recipe in _recipes(pairs):
        given = (recipe.get("model") or {}).get("model_args") or given
    given = copy.deepcopy(given)
    whole: list[Pair] = []
    for option, value in pairs:
        first, _, rest = option.removeprefix(f"{_MAPPING}.").partition(".")
        if option == _MAPPING and value:
            given = _value(value)
        if not option.startswith(f"{_MAPPING}.") or value is None or not isinstance(given, dict):
            whole.append((option, value))
            continue
        given[first] = _set(given.get(first), rest.split("."), value) if rest else _value(value)
        whole.append((f"{_MAPPING}.{first}", json.dumps(given[first]) if rest else value))
    return whole


def _set(mapping: Any, names: Sequence[str], value: str) -> dict[str, Any]:
    inner = mapping if isinstance(mapping, dict) else {}
    first, *rest = names
    return {**inner, first: _set(inner.get(first), rest, value) if rest else _value(value)}


def _value(text: str) -> Any:
    """Return what YAML reads, a float for ``1e-3``, which it takes for text, and other text for the parser to refuse."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _recipes(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    return [yaml.safe_load(Path(value).read_text("utf-8")) for option, value in pairs if option in _CONFIG and value]


def _import_modules(pairs: Sequence[Pair]) -> list[str]:
    """Import what recipes and ``--import`` name, and return the names; the working directory counts for the latter alone."""
    typed = [value for option, value in pairs if option == "--import"]
    if None in typed:
        raise ValueError("--import needs the name of a module, or of a .py file")
    modules = {module_name(str(name)) for name in typed}
    stored = [name for recipe in _recipes(pairs) for name in recipe.get("import") or () if module_name(name) not in modules]
    for name in typed:
        import_named(str(name), here=True)
    for name in stored:
        import_named(name, here=False)
    return [*dict.fromkeys([*stored, *map(str, typed)])]
