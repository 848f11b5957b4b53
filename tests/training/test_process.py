"""Training on a CPU keeps the memory that tensors free, and obeys an environment that says how to allocate."""

import os
import platform
import subprocess
import sys

import pytest

from flatten_transformer.training import process

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

# Prints how many pages were taken from the system for 64 MiB that were freed and are wanted again.
PROGRAM = """
import importlib.util, resource, sys

spec = importlib.util.spec_from_file_location("process", sys.argv[1])  # alone: the package imports torch
process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(process)
process.keep_freed_memory()
for _ in range(3):
    bytearray(b"1") * 2**26
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(b"1") * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2**26 // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def pages_taken(**environment: str) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", PROGRAM, process.__file__]
    run = subprocess.run(command, env=plain | environment, check=True, capture_output=True, text=True)
    return int(run.stdout)


def test_what_is_freed_is_used_again() -> None:
    assert pages_taken() < PAGES / 10


def test_the_environment_is_obeyed() -> None:
    assert pages_taken(MALLOC_MMAP_THRESHOLD_="1048576") > PAGES / 10
