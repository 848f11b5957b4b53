"""Compile the kernel once for this processor, cache it, and load its entry points."""

from __future__ import annotations

import ctypes
import functools
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch

from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.cpp.cache import cache_folder, keep, kept, ours_alone
from flatten_transformer.ops.cpp.compiler import compile_kernel, find_compiler, fingerprint
from flatten_transformer.ops.fused import GRADIENTS, TENSORS

_POINTERS = (*TENSORS, "grad", "out", "context", "key_sum", *(f"grad_{name}" for name in GRADIENTS))
_SIZES = (
    *("batch", "heads", "queries", "keys", "channels", "value_channels"),
    *("height", "width", "kernel_height", "kernel_width", "threads"),
)
_TYPES: dict[type, Any] = {bool: ctypes.c_int64, float: ctypes.c_double}
NUMBERS: dict[str, Any] = {name: _TYPES[kind] for name, kind in get_type_hints(Arguments).items() if kind in _TYPES}


class Problem(ctypes.Structure):
    """Arguments of the kernel: pointers, null for missing tensors; strides of batch, head and token, in elements."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((f"{name}_strides", ctypes.c_int64 * 3) for name in ("query", "key", "value")),
        ("encoding_strides", ctypes.c_int64 * 2),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("shift", ctypes.c_double),
        *NUMBERS.items(),
    ]


_Functions = dict[tuple[str, torch.dtype], Callable[[Any], int]]  # by direction ("forward" or "backward") and dtype


class Kernel(NamedTuple):
    """Entry points of the compiled kernel, which return 0 or an error code; or the reason why there are none."""

    functions: _Functions
    unavailable: str | None = None


@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    """Return why there is no compiled kernel on this machine, or None; the first call compiles it, in about 3 seconds."""
    return load().unavailable


@torch.compiler.assume_constant_result
def warn_if_off() -> None:
    """Warn, once a process, why the default kernel does not run; silent until something has tried to load it."""
    if load.cache_info().currsize and (reason := load().unavailable):
        _warn(f"the compiled kernel of attention is off: {reason} (FLATTEN_BACKEND=portable says that this is meant)")


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@functools.cache  # failures too: a failing compiler is not tried twice
def load() -> Kernel:
    """Load the kernel from the cache, or compile it."""
    try:
        compiler = find_compiler()
        return Kernel(_cached(compiler, fingerprint(compiler)))
    except (OSError, ValueError) as error:  # no compiler, one that fails, nowhere to compile
        return Kernel({}, " ".join(str(error).split()))


def _cached(compiler: list[str], key: str) -> _Functions:
    """Return the cached kernel; compile it if it is missing or cannot be loaded."""
    try:
        folder = cache_folder()
    except (OSError, RuntimeError) as error:  # others can write there, it cannot be made, this user has no home
        return _compiled(compiler, key, error)
    for library in kept(folder, key):
        with suppress(OSError):  # by another system's linker, or nothing may be run from there
            return _functions(library)
    return _compiled(compiler, key, folder)


def _compiled(compiler: list[str], key: str, cache: Path | Exception) -> _Functions:
    """Compile the kernel and load it, from the cache or, where that is unusable, for this process alone."""
    with ExitStack() as stack:
        draft = compile_kernel(compiler, _build_folder(stack, cache))
        if isinstance(cache, Path):
            try:
                return _functions(keep(draft, cache, key))
            except OSError as error:  # read-only, full, nothing may be run from there
                cache = error
        functions = _functions(draft)
    _warn(f"attention's kernel was compiled for this process alone, which takes seconds, since it cannot be kept: {cache}")
    return functions


def _build_folder(stack: ExitStack, cache: Path | Exception) -> Path:
    """Return a new private folder: among the system's temporary ones, or else in the cache."""
    new = partial(tempfile.TemporaryDirectory, prefix=".flatten-", ignore_cleanup_errors=True)
    try:
        return ours_alone(Path(stack.enter_context(new())))
    except OSError:
        if not isinstance(cache, Path):
            raise
        return Path(stack.enter_context(new(dir=cache)))


def _functions(path: Path) -> _Functions:
    """Load the entry points of a library.

    Raises:
        OSError: If it cannot be loaded, or lacks them.
    """
    library = ctypes.CDLL(str(path))
    try:
        return {
            (direction, dtype): getattr(library, f"focused_{direction}_{name}")
            for direction in ("forward", "backward")
            for dtype, name in ((torch.float32, "float"), (torch.float64, "double"))
        }
    except AttributeError as error:
        raise OSError(f"{path} is not the kernel: {error}") from None
