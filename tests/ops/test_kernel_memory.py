"""Where memory ends within the compiled kernel, an error says so, and the process goes on."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from flatten_transformer.ops.cpp import build

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"no compiled kernel: {build.unavailable()}")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are kept on Linux")
def test_where_memory_ends_an_error_says_so_and_the_next_call_is_right() -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.ops.kernel_out_of_memory"], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("size", ["batch", "channels", "value_channels", "heads", "kernel_width"])
def test_sizes_whose_products_no_integer_holds_are_refused_before_anything_is_touched(size: str) -> None:
    sizes = {"batch": 2, "heads": 2, "queries": 2, "keys": 2, "channels": 2, "value_channels": 2, "threads": 1}
    sizes |= {"height": 1, "width": 2, "kernel_height": 1, "kernel_width": 1}
    problem = build.Problem(**(sizes | {size: 2**61}))
    for function in build.load().functions.values():
        assert function(ctypes.byref(problem)) == 1
