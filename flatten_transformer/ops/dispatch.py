"""Which backend computes an attention: by device, dtype and size, or the one that is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from flatten_transformer.ops import cpp, linear_attention, triton
from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.fused import Attend

Backend = Literal["portable", "cpp", "triton"]
VARIABLE = "FLATTEN_BACKEND"


class BackendError(RuntimeError):
    """The backend that was asked for cannot run here."""


class _Entry(NamedTuple):
    attend: Attend
    why_not: Callable[[Arguments], str | None]  # the reason why it cannot run, or None


_BACKENDS: dict[str, _Entry] = {
    "portable": _Entry(linear_attention.attend, lambda a: None),
    "cpp": _Entry(cpp.attend, cpp.why_not),
    "triton": _Entry(triton.attend, triton.why_not),
}


def check_backend(backend: str | None) -> None:
    """Raise ValueError unless ``backend`` is the name of one, or None."""
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, or None to choose; got {backend!r}")


def choose_backend(backend: str | None, a: Arguments, *, under_transforms: bool = False) -> Attend:
    """Return what computes this attention.

    Args:
        backend: The one asked for; None leaves it to the environment variable ``FLATTEN_BACKEND``, and then to what
            was fastest in the benchmarks of the documentation.
        a: The arguments of the attention.
        under_transforms: Whether function transforms are at work: they are computed by the portable backend whatever was
            asked for, as kernels know nothing but their gradient.

    Raises:
        ValueError: If there is no such backend.
        BackendError: If it was asked for and cannot compute this here; the message says why. It is a RuntimeError.

    Example:
        >>> q, k, v = torch.rand(3, 1, 2, 5, 4).unbind(0)
        >>> choose_backend("portable", Arguments(q, k, v)).__module__
        'flatten_transformer.ops.linear_attention'
    """
    if torch.compiler.is_exporting():  # what is exported runs where this library is not
        return _BACKENDS["portable"].attend
    asked = backend or os.environ.get(VARIABLE)
    if asked:
        check_backend(asked)
        reason = _BACKENDS[asked].why_not(a)
        if reason:
            raise BackendError(
                f'backend "{asked}" cannot run here: {reason}; with backend=None and {VARIABLE} unset one is chosen'
            )
        return _BACKENDS["portable" if under_transforms else asked].attend
    if under_transforms:
        return _BACKENDS["portable"].attend
    fused = "cpp" if a.query.device.type == "cpu" else "triton"
    if fused in _BACKENDS and _BACKENDS[fused].why_not(a) is None:
        return _BACKENDS[fused].attend
    cpp.warn_if_off()
    return _BACKENDS["portable"].attend
