"""Find a C++ compiler, identify the processor by its macros, and compile the kernel."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
from pathlib import Path

from flatten_transformer.ops.feature_maps import LARGEST_MULTIPLIED_POWER

SOURCE = Path(__file__).with_name("attention.cpp")
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"),
    f"-DLARGEST_MULTIPLIED_POWER={LARGEST_MULTIPLIED_POWER}",
)
SECONDS = 300.0  # a compilation takes about 3
_MAX_BYTES = 2**22  # of a compiler's output


def find_compiler() -> list[str]:
    """Return the C++ compiler's command: CXX, which may have several words, or the first one installed.

    Raises:
        OSError: If there is none.
        ValueError: If CXX cannot be split into words.
    """
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise ValueError(f"the environment variable CXX, {os.environ['CXX']!r}, is no command: {error}") from None
    if named:
        return named
    for name in ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path and os.path.isabs(path):  # an empty entry of PATH means the working directory
            return [path]
    raise OSError("there is no C++ compiler (c++, g++, clang++ or the one named by CXX)")


def fingerprint(compiler: list[str]) -> str:
    """Return 16 hexadecimal digits that identify source, flags, compiler and processor.

    Home folders may be shared between machines, so the meaning of ``-march=native`` counts: the compiler's own macros
    reveal it on any processor.

    Raises:
        OSError: If the compiler fails.
    """
    macros = _run([*compiler, *FLAGS, "-dM", "-E", "-x", "c++", "-"])
    return hashlib.sha256(b"\0".join([SOURCE.read_bytes(), *map(os.fsencode, (*compiler, *FLAGS)), macros])).hexdigest()[:16]


def compile_kernel(compiler: list[str], folder: Path) -> Path:
    """Compile the kernel in a folder, which also takes the compiler's temporary files, and return the library.

    Raises:
        OSError: If the compiler fails, times out or produces nothing.
    """
    library = folder / "attention.so"
    command = [*compiler, *FLAGS, str(SOURCE), "-o", str(library)]
    _run(command, folder)
    if not library.is_file():
        raise OSError(f"{shlex.join(command)} made no library")
    return library


def _run(command: list[str], folder: Path | None = None) -> bytes:
    """Return the output of a command, limited in size and time; Ctrl-C ends it too."""
    variables = {**os.environ, "LC_ALL": "C", **({} if folder is None else {"TMPDIR": str(folder)})}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables,
        start_new_session=True,  # its children are ended with it
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(SECONDS, _kill, [process])
        timer.start()
        try:
            output = process.stdout.read(_MAX_BYTES)
            process.stdout.close()
            status = process.wait()
        finally:
            late = not timer.is_alive()
            timer.cancel()
            _kill(process)
    if status:
        how = f"had not ended after {SECONDS:g} seconds" if late else "failed" if status > 0 else f"was ended by signal {-status}"
        raise OSError(f"{shlex.join(command)} {how}: {output[:500].decode('utf-8', 'replace')}")
    return output


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command, if it is still running, and its children."""
    if process.returncode is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
