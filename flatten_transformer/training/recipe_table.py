"""A table of the recipes, by data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from flatten_transformer.training.recipes import Recipe, folders, read_recipe, recipe_key, recipe_names
from flatten_transformer.utils.printable import columns
from flatten_transformer.utils.suggest import did_you_mean

_NOT_RUN = "-"


def matching_recipes(words: Sequence[str] = ()) -> list[Recipe]:
    """Return the bundled recipes that hold every given word; first the data sets on which one has been run.

    Args:
        words: Beginnings of words of a recipe's name and task, such as ``digits`` or ``swin``; or one full name.

    Raises:
        ValueError: If no recipe fits.

    Example:
        >>> [recipe.name for recipe in matching_recipes(["digits", "deit"])]
        ['digits/flatten_deit', 'digits/softmax_deit']
    """
    names = recipe_names()
    given = recipe_key(" ".join(words))
    if given in names:
        return [read_recipe(given)]
    fitting = [recipe for recipe in map(read_recipe, names) if all(_holds(recipe, word) for word in words)]
    if not fitting:
        raise ValueError(f"no recipe fits {given!r}: {did_you_mean(given, names, folders(names))}")
    tried = {recipe.folder for recipe in fitting if recipe.time}
    return sorted(fitting, key=lambda recipe: recipe.folder not in tried)


def recipe_table(recipes: Sequence[Recipe] | None = None) -> str:
    """Return a table with a part for each data set: name, model, hardware, time.

    Plain text, as rich would take longer to import than the table to make.

    Args:
        recipes: From :func:`matching_recipes`; by default all.

    Example:
        >>> print(recipe_table(matching_recipes(["digits"])))
        digits: classify
          digits/flatten_deit  flatten_deit_tiny_patch16_224  2 CPU cores  under 1 minute
          digits/softmax_deit  flatten_deit_tiny_patch16_224  2 CPU cores  under 1 minute
    """
    recipes = matching_recipes() if recipes is None else recipes
    return "\n\n".join(_part(list(group)) for _, group in groupby(recipes, key=lambda recipe: recipe.folder))


def _part(recipes: Sequence[Recipe]) -> str:
    """Return the table of one data set."""
    rows = [(recipe.name, recipe.model, recipe.hardware, recipe.time or _NOT_RUN) for recipe in recipes]
    tasks = " and ".join(dict.fromkeys(recipe.task for recipe in recipes))
    return "\n  ".join((f"{recipes[0].folder}: {tasks}", *columns(rows)))


def _holds(recipe: Recipe, word: str) -> bool:
    return re.search(rf"(?<![^\W_]){re.escape(word.lower())}", f"{recipe.name} {recipe.task}") is not None
