"""Build models by name, with one-line errors for unsupported arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch

from flatten_transformer.models.cures import LayoutError, NoWeightsError, UnreachableError
from flatten_transformer.models.read_weights import in_one_line, one_line
from flatten_transformer.tasks.description import read_fields
from flatten_transformer.utils.suggest import did_you_mean

Options = TypeVar("Options")
_NETWORK = ("huggingface_hub", "httpx", "requests", "urllib")  # modules of the errors of downloads


@contextmanager
def building(name: str, what: str, file: object = None) -> Iterator[None]:
    """Turn any error of a model constructor into a one-line ValueError.

    Args:
        name: Model name.
        what: Name of its arguments in messages.
        file: Weights file that timm reads, if any.

    Example:
        >>> with building("a net", "model_args"):
        ...     torch.nn.Linear(width=3)
        Traceback (most recent call last):
        ValueError: model_args do not fit a net: got an unexpected keyword argument 'width': leave it out or correct its name
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (LayoutError, NoWeightsError, UnreachableError)):
            raise
        if type(error).__module__.startswith(_NETWORK) or "No pretrained weights exist" in str(error):
            raise _no_weights(name, error) from error
        if isinstance(error, (ValueError, OSError, ImportError)):
            raise
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            reason = f"{str(error).split('() ')[-1]}: leave it out or correct its name"
            raise ValueError(f"{what} do not fit {name}: {reason}") from error
        if file and isinstance(error, (RuntimeError, KeyError)):  # from timm, for weights that do not fit
            raise ValueError(f"the weights of {file} do not fit {name} ({one_line(error)}): give those of this model") from error
        raise ValueError(f"{what} do not fit {name} ({one_line(error)}): correct them{_cure(error)}") from error


def _no_weights(name: str, error: Exception) -> NoWeightsError | UnreachableError:
    """Return an error of timm, or of the libraries that it downloads with, as ours."""
    if "No pretrained weights exist" in str(error):
        return NoWeightsError(f"no weights were published for {name}", "choose another model")
    root: BaseException = error
    while (below := root.__cause__ or root.__context__) is not None:
        root = below
    return UnreachableError(f"the weights of {name} cannot be fetched ({in_one_line(str(root))})", "try again later")


def _as_option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def cures_of_options(args: str, weights: str, weights_file: str) -> Iterator[None]:
    """Turn Python's cures in errors about weights into those of the command line.

    Args:
        args: The option that holds the arguments of the model.
        weights: The option that asks for published weights.
        weights_file: The option that takes a file.

    Example:
        >>> with cures_of_options("--model.model_args", "--model.pretrained", "--model.pretrained"):
        ...     raise LayoutError("the file has a class token, the model none", {"class_token": True})
        Traceback (most recent call last):
        ValueError: the file has a class token, the model none: add --model.model_args.class_token true
    """
    try:
        yield
    except LayoutError as error:
        options = (f"{args}.{name} {_as_option(value)}" for name, value in error.arguments.items())
        raise ValueError(f"{error.problem}: add {' '.join(options)}") from error
    except (NoWeightsError, UnreachableError) as error:
        cure = f"leave {weights} out, give a file by {weights_file} weights.safetensors, or {error.other}"
        kind = ConnectionError if isinstance(error, UnreachableError) else ValueError
        raise kind(f"{error.problem}: {cure}") from error


@contextmanager
def building_backbone(name: str) -> Iterator[None]:
    """Turn any error of a backbone's constructor into a one-line error of the command line.

    Args:
        name: timm name of the backbone.
    """
    args = "--model.model_args.backbone_args"
    with cures_of_options(args, f"{args}.pretrained", f"{args}.checkpoint_path"), building(name, "backbone_args"):
        yield


def _cure(error: Exception) -> str:
    """Return a further cure for failed loading: a damaged download in the cache of PyTorch or Hugging Face."""
    if "load" not in str(error):
        return ""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return f"; if weights were fetched, delete what is damaged of them from {folder} or the cache of Hugging Face"


def read_options(kind: type[Options], model: str, model_args: Mapping[str, Any]) -> Options:
    """Parse the options of a detector or segmenter.

    Args:
        kind: Dataclass of its options, with a ``backbone``.
        model: Model name, for messages.
        model_args: Options by name.

    Raises:
        ValueError: If an option is unknown, missing, of the wrong type or out of range, or timm lacks the backbone.
    """
    known = [option.name for option in fields(kind)]  # type: ignore[arg-type]
    if unknown := [key for key in model_args if key not in known]:
        raise ValueError(f"{model} takes no {unknown[0]!r} in model_args: {did_you_mean(unknown[0], known)}")
    if "backbone" not in model_args:
        raise ValueError(f"{model} needs a backbone in model_args, such as flatten_swin_tiny_patch4_224")
    options: Any = read_fields(kind, model_args, "model_args")
    check_name(options.backbone, "backbone")
    return options


def check_name(name: str, what: str) -> None:
    """Raise ValueError if timm knows no model of this name.

    Args:
        name: Model name.
        what: Noun for the message.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm knows no {what} {name!r}: {did_you_mean(name, timm.list_models())}")
