"""Find recipes by name, in a source tree or an installed wheel; nothing here needs torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.utils.suggest import did_you_mean

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML was built with it
_NAMED = 5  # so many names are listed on the line of an error


@dataclass(frozen=True)
class Recipe:
    """What a recipe says of itself.

    Args:
        name: Such as ``digits/flatten_deit``.
        task: ``classify``, ``detect`` or ``segment``.
        model: Name of the model, or of the detector or segmenter and its backbone.
        hardware: What it was, or would be, trained on.
        time: What that took; None if it has not been run.
    """

    name: str
    task: str
    model: str
    hardware: str
    time: str | None

    @property
    def folder(self) -> str:
        """Name of the data set: the folder of the recipe, or its name if it is in none."""
        return self.name.partition("/")[0]


def recipe_folder() -> Path:
    """Return the folder of the bundled recipes."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of all bundled recipes.

    Example:
        >>> "digits/flatten_deit" in recipe_names()
        True
    """
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def recipe_key(name: str) -> str:
    """Return the name of a recipe without what may stand around it.

    Example:
        >>> recipe_key("recipes/digits/flatten_deit.yaml")
        'digits/flatten_deit'
    """
    return name.removeprefix("recipes/").removesuffix(".yaml").rstrip("/")


def folders(names: Iterable[str]) -> list[str]:
    """Return the folders of recipes, for a message.

    Example:
        >>> folders(["digits/flatten_deit", "digits/softmax_deit", "finetune"])
        ['digits/…', 'finetune']
    """
    return sorted({f"{name.partition('/')[0]}/…" if "/" in name else name for name in names})


def find_recipe(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: A path, with or without a leading ``recipes/``, or a name such as ``digits/flatten_deit``. A name may be shortened
            to the first of its words, and lack its folder, where that says which one is meant. A complete name without
            ``.yaml`` always means the bundled recipe, whatever the working directory holds.

    Raises:
        FileNotFoundError: If there is no such file and no such recipe, or several recipes fit.
        ValueError: If the file is not a YAML mapping.

    Example:
        >>> find_recipe("imagenet1k/flatten_swin_tiny").name, find_recipe("upernet_flatten_swin_tiny").name
        ('flatten_swin_tiny_patch4_224.yaml', 'upernet_flatten_swin_tiny_160k.yaml')
    """
    full = full_name(name)
    path = recipe_folder() / f"{full}.yaml" if full in recipe_names() else Path(full)
    _read(path)
    return path


def full_name(name: str) -> str:
    """Return the full name of the recipe that a name means; the path of a file stays as it is.

    Args:
        name: As in :func:`find_recipe`.

    Raises:
        FileNotFoundError: If there is no such file and no such recipe, or several recipes fit.

    Example:
        >>> full_name("study"), full_name("scenes/mask_rcnn.yaml")
        ('fashion_mnist/study', 'scenes/mask_rcnn_flatten_pvt_v2')
    """
    key = recipe_key(name)
    names = recipe_names()
    if name not in names and Path(name).is_file():
        return name
    meant = _meant(key, names)
    if len(meant) == 1:
        return meant[0]
    if meant:
        choice = f"choose one of {', '.join(meant)}" if len(meant) <= _NAMED else f"`flatten recipes {key}` lists them"
        raise FileNotFoundError(f"{len(meant)} recipes fit {key!r}: {choice}")
    raise FileNotFoundError(f"no recipe and no file {name!r}: {did_you_mean(key, names, folders(names))}")


def say_full_name(name: str) -> str:
    """Return the full name of a recipe, as :func:`full_name`, and say it on stderr if the name was shortened."""
    full = full_name(name)
    if full not in (name, recipe_key(name)):
        sys.stderr.write(f"{recipe_key(name)} is the recipe {full}\n")
    return full


def read_recipe(name: str) -> Recipe:
    """Return what a bundled recipe says of itself, in its options and in the comments that it opens with.

    Args:
        name: Full name.

    Example:
        >>> read_recipe("scenes/mask_rcnn_flatten_pvt_v2")  # doctest: +NORMALIZE_WHITESPACE
        Recipe(name='scenes/mask_rcnn_flatten_pvt_v2', task='detect', model='mask_rcnn on flatten_pvt_v2_b0',
               hardware='2 CPU cores', time='311 s')
    """
    path = recipe_folder() / f"{name}.yaml"
    options = _read(path)
    model = options.get("model", {})
    backbone = str(model.get("model_args", {}).get("backbone", "")).partition("_patch")[0]
    remarks = dict(re.findall(r"^# (\w+): (.*)$", path.read_text("utf-8"), flags=re.MULTILINE))
    time = remarks.get("time", "")
    return Recipe(
        name,
        options.get("task", "classify"),
        f"{model.get('name', '')} on {backbone}" if backbone else str(model.get("name", "")),
        _brief(remarks.get("hardware", "")),
        None if time.startswith("not run") else _brief(time),
    )


def _meant(key: str, names: list[str]) -> list[str]:
    """Return the recipes of that name, or else those that begin with its words, or else both without their folders."""
    titles = {name: name for name in names}
    stems = {name: name.rpartition("/")[2] for name in names}
    begins = re.compile(rf"{re.escape(key)}(?![^\W_])")  # the next character is no letter and no digit
    for called in (titles, stems):
        same = [name for name in names if called[name] == key]
        found = same or [name for name in names if key and begins.match(called[name])]
        if found:
            return found
    return []


def _brief(remark: str) -> str:
    """Return a remark up to its first aside."""
    return re.split(r"[;,(]| with | on ", remark)[0].strip()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text("utf-8"), _LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a recipe: it cannot be read as YAML ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe: it must hold options by name, such as `model:` and `data:`")
    return content
