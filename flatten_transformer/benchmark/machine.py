"""Machine and versions of a measurement."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from flatten_transformer.benchmark.memory import MIB, free_mib
from flatten_transformer.benchmark.timing import Run, Spread, stopwatch_for

Header = dict[str, str | int | float | None]


def choose_device(name: str) -> torch.device:
    """Return a device by name: ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is a GPU if there is one.

    Raises:
        ValueError: If there is no such device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"no device {name!r}: choose auto, cpu or cuda")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no device {name!r} here, {torch.cuda.device_count()} GPUs are seen: choose cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return the product name, such as ``NVIDIA H100 80GB HBM3``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe(device: torch.device) -> Header:
    """Return the header of a report: machine, versions, commit, digest of the code, date and command.

    Example:
        >>> header = describe(torch.device("cpu"))
        >>> header["device"], header["threads"] == torch.get_num_threads()
        ('cpu', True)
    """
    return {
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "free_memory_mib": round(free_mib(device)),
        "copy_gb_per_s": round(copy_gb_per_s(device), 2),
        **{package: _version(package) for package in ("torch", "triton", "timm")},
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "flatten_backend": os.environ.get("FLATTEN_BACKEND"),
        "commit": commit(),
        "code": code(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def copy_gb_per_s(device: torch.device) -> float:
    """Measure copy bandwidth in 10⁹ bytes per second, reads plus writes: the floor of every kernel."""
    source = torch.ones((1024 if device.type == "cuda" else 64) * MIB // 4, device=device)
    target = torch.empty_like(source)
    run = Run(lambda turn: (target.copy_(source),))
    stopwatch = stopwatch_for(device)
    times_us: list[float] = []
    start_s = time.perf_counter()
    while len(times_us) < 5 or (len(times_us) < 30 and time.perf_counter() - start_s < 0.5):
        times_us += stopwatch([(run, 0)])
    return 2 * source.nbytes / Spread.of(times_us[1:]).median / 1e3


def commit() -> str | None:
    """Return the commit of the running code, with a ``+`` if files differ; None outside a repository."""
    folder = Path(__file__).parent
    try:
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)  # fails in a repository around site-packages
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def code() -> str:
    """Return a digest of the library's source files, which tells apart what a commit does not: unsaved changes, installations.

    Example:
        >>> len(code()), code() == code()
        (12, True)
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp")):
        digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
