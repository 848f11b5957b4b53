"""`flatten recipes`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flatten_transformer.training.recipe_table import matching_recipes, recipe_table
from flatten_transformer.training.recipes import find_recipe

_BELOW = """
-                          not run here yet
flatten recipes NAME       shows a recipe
flatten fit --config NAME  trains by it
"""


def recipes(words: Sequence[str] = (), /) -> None:
    """List the recipes that hold all words: model, hardware and time; or show the file of the only one.

    Args:
        words: A name, or beginnings of words of names and tasks, such as digits or swin; none for all recipes.

    Raises:
        ValueError: If no recipe fits.
    """
    fitting = matching_recipes(words)
    if len(fitting) == 1:
        sys.stdout.write(find_recipe(fitting[0].name).read_text("utf-8"))
    else:
        sys.stdout.write(f"{recipe_table(fitting)}\n{_BELOW}")
