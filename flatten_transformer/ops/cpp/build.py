"""Compile the kernel once for this machine's processor, and keep the result among the user's cached files."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

_SOURCE = Path(__file__).with_name("attention.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_POINTERS = (
    *("query", "key", "value", "key_weights", "key_encoding", "temperature", "conv_weight", "conv_bias", "grad"),
    *("out", "context", "key_sum"),
    *("grad_query", "grad_key", "grad_value", "grad_temperature", "grad_weight", "grad_bias"),
)
_SIZES = (
    *("batch", "heads", "queries", "keys", "channels", "value_channels"),
    *("height", "width", "kernel_height", "kernel_width", "joint", "threads"),
)


class Problem(ctypes.Structure):
    """The arguments of the kernel; a pointer that is left out is null, strides count elements of batch, head and token."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((f"{name}_strides", ctypes.c_int64 * 3) for name in ("query", "key", "value")),
        ("encoding_strides", ctypes.c_int64 * 2),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("focusing_factor", ctypes.c_double),
        ("eps", ctypes.c_double),
    ]


class Kernel(NamedTuple):
    """The entry points of the compiled kernel, or why there are none."""

    functions: dict[tuple[str, torch.dtype], Callable[..., Any]]  # by direction ("forward" or "backward") and dtype
    unavailable: str | None = None


@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    """Return why there is no compiled kernel on this machine, or None; the first call compiles it, in about 3 seconds."""
    return load().unavailable


@functools.cache  # failures too: nobody waits twice for a compiler that fails
def load() -> Kernel:
    """Compile the kernel, if it is not there yet, and load it."""
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, ValueError) as error:  # no compiler, a compiler that fails, no home, nothing to write to
        return Kernel({}, " ".join(str(error).split()))
    functions = {
        (direction, dtype): getattr(library, f"focused_{direction}_{name}")
        for direction in ("forward", "backward")
        for dtype, name in ((torch.float32, "float"), (torch.float64, "double"))
    }
    return Kernel(functions)


def _compiled() -> Path:
    """Return the shared library for this source, compiler and processor, made if it is not there yet."""
    compiler = _compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\n".join([_SOURCE.read_text(), *_FLAGS, version, _processor()]).encode()).hexdigest()[:16]
    library = _cache() / f"attention-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # so that nobody loads half a file
            unfinished = Path(folder) / library.name
            _compile(compiler, unfinished)
            unfinished.replace(library)
    return library


def _compiler() -> list[str]:
    """Return the command that compiles C++: that of CXX, which may have several words, or the first that is there."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise OSError("there is no C++ compiler (c++, g++, clang++ or the one named by CXX)")


def _compile(compiler: list[str], target: Path) -> None:
    command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)} failed: {done.stderr[:500]}")


def _cache() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "flatten_transformer"


def _processor() -> str:
    """Return what tells processors with different instructions apart: homes are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
