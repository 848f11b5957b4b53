"""Backend dispatch: by device, dtype and size, or by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from flatten_transformer.ops import cpp, linear_attention, triton
from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.fused import Attend
from flatten_transformer.utils.stopping import UnavailableError

Backend = Literal["portable", "cpp", "triton"]
VARIABLE = "FLATTEN_BACKEND"


class BackendError(UnavailableError):
    """The requested backend cannot run here."""


class _Entry(NamedTuple):
    attend: Attend
    why_not: Callable[[Arguments], str | None]  # the reason why it cannot run, or None


_BACKENDS: dict[str, _Entry] = {
    "portable": _Entry(linear_attention.attend, lambda a: None),
    "cpp": _Entry(cpp.attend, cpp.why_not),
    "triton": _Entry(triton.attend, triton.why_not),
}


def register_backend(name: str, attend: Attend) -> None:
    """Register a backend of another package under a name, such as the one that benchmarks compare with."""
    _BACKENDS[name] = _Entry(attend, lambda *_: None)


def check_backend(backend: str | None) -> None:
    """Raise ValueError unless ``backend`` is a registered name or None."""
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, or None to choose; got {backend!r}")


def choose_backend(backend: str | None, a: Arguments, *, under_transforms: bool = False) -> Attend:
    """Return the backend that computes this attention.

    Args:
        backend: Requested backend; None defers to the environment variable ``FLATTEN_BACKEND``, and then to the fastest
            one in the documented benchmarks.
        a: Arguments of the attention.
        under_transforms: Whether function transforms are active: they always take the portable backend, as kernels have
            first derivatives only.

    Raises:
        ValueError: If there is no such backend.
        BackendError: If the requested backend cannot run here; the message says why. It is a RuntimeError.

    Example:
        >>> q, k, v = torch.rand(3, 1, 2, 5, 4).unbind(0)
        >>> choose_backend("portable", Arguments(q, k, v)).__module__
        'flatten_transformer.ops.linear_attention'
    """
    if torch.compiler.is_exporting():  # an exported graph runs without this library
        return _BACKENDS["portable"].attend
    requested = backend or os.environ.get(VARIABLE)
    if requested:
        check_backend(requested)
        reason = _BACKENDS[requested].why_not(a)
        if reason:
            raise BackendError(
                f'backend "{requested}" cannot run here: {reason}; with backend=None and {VARIABLE} unset one is chosen'
            )
        return _BACKENDS["portable" if under_transforms else requested].attend
    if under_transforms:
        return _BACKENDS["portable"].attend
    fused = "cpp" if a.query.device.type == "cpu" else "triton"
    if fused in _BACKENDS and _BACKENDS[fused].why_not(a) is None:
        return _BACKENDS[fused].attend
    cpp.warn_if_off()
    return _BACKENDS["portable"].attend
