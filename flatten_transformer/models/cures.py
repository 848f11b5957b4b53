"""Errors about weights, each with problem and cure apart: the command line spells the cure in another way than Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LayoutError(ValueError):
    """The weights fit the model once it is built with other arguments.

    Args:
        problem: What does not fit.
        arguments: Keyword arguments of ``timm.create_model`` that cure it.

    Example:
        >>> print(LayoutError("the file has a class token, the model none", {"class_token": True}))
        the file has a class token, the model none: build it by timm.create_model(…, class_token=True)
    """

    def __init__(self, problem: str, arguments: Mapping[str, Any]) -> None:
        self.problem, self.arguments = problem, dict(arguments)
        written = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        super().__init__(f"{problem}: build it by timm.create_model(…, {written})")


class NoWeightsError(ValueError):
    """There are no weights where ``pretrained=True`` looks for them.

    Args:
        problem: Why not.
        other: A cure besides leaving ``pretrained`` out and giving a file.
    """

    def __init__(self, problem: str, other: str) -> None:
        self.problem, self.other = problem, other
        super().__init__(_in_python(problem, other))


class UnreachableError(ConnectionError):
    """Published weights cannot be fetched; the arguments are those of :class:`NoWeightsError`."""

    def __init__(self, problem: str, other: str) -> None:
        self.problem, self.other = problem, other
        super().__init__(_in_python(problem, other))


def _in_python(problem: str, other: str) -> str:
    return f"{problem}: leave pretrained out, take a file with pretrained_cfg_overlay={{'file': path}}, or {other}"
