"""Find recipes by name, in a source tree or an installed wheel."""

from __future__ import annotations

from pathlib import Path

import yaml  # type: ignore[import-untyped]  # ships no annotations

from flatten_transformer.utils.suggest import did_you_mean


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


def find_recipe(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: A path, with or without a leading ``recipes/``, or a name such as ``digits/flatten_deit`` or an unambiguous
            prefix of one. A complete name without ``.yaml`` always means the bundled recipe, whatever the working
            directory holds.

    Raises:
        FileNotFoundError: If there is no such file and no such recipe, or the prefix is ambiguous.
        ValueError: If the file is not a YAML mapping.

    Example:
        >>> find_recipe("imagenet1k/flatten_swin_tiny").name
        'flatten_swin_tiny_patch4_224.yaml'
    """
    key = name.removeprefix("recipes/").removesuffix(".yaml")
    names = recipe_names()
    matches = [key] if key in names else [recipe for recipe in names if key and recipe.startswith(key)]
    own = [] if name in names else [Path(name)]
    for path in (*own, *(recipe_folder() / f"{recipe}.yaml" for recipe in matches if len(matches) == 1)):
        if path.is_file():
            _check(path)
            return path
    if matches:
        raise FileNotFoundError(f"{len(matches)} recipes begin with {key!r}: choose one of {', '.join(matches)}")
    folders = sorted({f"{recipe.partition('/')[0]}/…" if "/" in recipe else recipe for recipe in names})
    raise FileNotFoundError(f"no recipe and no file {name!r}: {did_you_mean(key, names, folders)}")


def _check(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a recipe: it cannot be read as YAML ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe: it must hold options by name, such as `model:` and `data:`")
