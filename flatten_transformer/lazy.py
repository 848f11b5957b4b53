"""Finding a function or class by its name when it is used, so that nothing heavy loads before."""

from __future__ import annotations

import importlib
from typing import Any


def load(path: str) -> Any:
    """Return what ``"module:name"`` names.

    Example:
        >>> load("math:sqrt")(9.0)
        3.0
    """
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
