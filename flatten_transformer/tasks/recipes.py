"""Finding a recipe by its name, from a source tree and from an installed wheel alike."""

from __future__ import annotations

import difflib
from pathlib import Path


def recipe_folder() -> Path:
    """Return the folder of the recipes that come with the library."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of all recipes that come with the library.

    Example:
        >>> "digits/flatten_deit" in recipe_names()
        True
    """
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: A path, with ``recipes/`` at its beginning or not, or a name such as ``digits/flatten_deit``.

    Raises:
        FileNotFoundError: If there is no such file and no such recipe.

    Example:
        >>> find_recipe("digits/flatten_deit").name
        'flatten_deit.yaml'
    """
    key = name.removeprefix("recipes/").removesuffix(".yaml")
    for path in (Path(name), recipe_folder() / f"{key}.yaml"):
        if path.is_file():
            return path
    names = recipe_names()
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"give a path, or one of {', '.join(names)}"
    raise FileNotFoundError(f"no recipe {name!r}: {hint}")
