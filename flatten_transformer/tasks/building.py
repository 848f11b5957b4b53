"""What every builder says of arguments that a model was not made for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flatten_transformer.models.files import one_line


@contextmanager
def building(name: str, what: str, file: object = None) -> Iterator[None]:
    """Raise ValueError, in one line, for whatever a constructor raises: it is not made for arguments of any kind.

    Args:
        name: Of the model.
        what: What holds its arguments.
        file: Of weights, if timm shall read one.

    Example:
        >>> with building("a net", "model_args"):
        ...     torch.nn.Linear(width=3)
        Traceback (most recent call last):
        ValueError: model_args do not fit a net: got an unexpected keyword argument 'width': leave it out or correct its name
    """
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            reason = f"{str(error).split('() ')[-1]}: leave it out or correct its name"
            raise ValueError(f"{what} do not fit {name}: {reason}") from error
        if file and isinstance(error, (RuntimeError, KeyError)):  # timm's, of weights that do not fit
            raise ValueError(f"the weights of {file} do not fit {name} ({one_line(error)}): give those of this model") from error
        raise ValueError(f"{what} do not fit {name} ({one_line(error)}): correct them{_cure(error)}") from error


def _cure(error: Exception) -> str:
    """Return what else may help where weights were read, which timm fetches and PyTorch keeps whatever they are."""
    if "load" not in str(error):
        return ""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return f"; if weights were fetched, delete what is damaged of them from {folder} or the cache of Hugging Face"
