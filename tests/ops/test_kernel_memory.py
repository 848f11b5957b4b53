"""Where memory ends within the compiled kernel, an error says so, and the process goes on."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from flatten_transformer import focused_linear_attention
from flatten_transformer.ops.cpp import build
from tests.helpers import output_and_gradients, relative_error

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"no compiled kernel: {build.unavailable()}")
MIB = 2**20
# Sizes, and what runs out: the sums over keys, which all threads share, 64 MiB; a thread's own tile of features, 48 MiB each.
SHARED, OWN = (64, 1, 1, 512, 512), (1, 1, 1, 400_000, 1)


@contextmanager
def memory_left(mib: int) -> Iterator[None]:
    """Let this process have little more memory than it has now."""
    if sys.platform != "linux":
        pytest.skip("limits of address space are kept on Linux")
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + mib * MIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def inputs(batch: int, heads: int, tokens: int, channels: int, value_channels: int) -> list[torch.Tensor]:
    return [torch.randn(batch, heads, tokens, size) for size in (channels, channels, value_channels)]


def attend(*tensors: torch.Tensor) -> torch.Tensor:
    return focused_linear_attention(*tensors, backend="cpp")


def as_ever() -> None:
    """Compare output and gradients with the portable backend's; this also starts the kernel's threads."""
    tensors = [x.double() for x in inputs(2, 2, 700, 8, 12)]
    came = output_and_gradients(attend, tensors, tensors[2])
    wanted = output_and_gradients(lambda *x: focused_linear_attention(*x, backend="portable"), tensors, tensors[2])
    assert max(map(relative_error, came, wanted)) < 1e-10  # 3e-14 measured


@pytest.mark.parametrize(("sizes", "mib"), [(SHARED, 90), (OWN, 90)])
def test_forward_says_that_memory_is_out_and_the_next_call_is_right(sizes: tuple[int, ...], mib: int) -> None:
    as_ever()
    tensors = inputs(*sizes)
    with memory_left(mib), pytest.raises(torch.OutOfMemoryError, match=r"out of memory in the kernel.*forward.*smaller batches"):
        attend(*tensors)
    as_ever()


@pytest.mark.parametrize(("sizes", "mib"), [(SHARED, 40), (SHARED, 200), (OWN, 150)])
def test_backward_says_that_memory_is_out_and_the_next_call_is_right(sizes: tuple[int, ...], mib: int) -> None:
    as_ever()
    tensors = [x.requires_grad_() for x in inputs(*sizes)]
    out = attend(*tensors).sum()
    with memory_left(mib), pytest.raises(torch.OutOfMemoryError, match=r"out of memory in the kernel.*backward"):
        out.backward()
    assert all(x.grad is None for x in tensors)
    as_ever()


@pytest.mark.parametrize("size", ["batch", "channels", "value_channels", "heads", "kernel_width"])
def test_sizes_whose_products_no_integer_holds_are_refused_before_anything_is_touched(size: str) -> None:
    sizes = {"batch": 2, "heads": 2, "queries": 2, "keys": 2, "channels": 2, "value_channels": 2, "threads": 1}
    sizes |= {"height": 1, "width": 2, "kernel_height": 1, "kernel_width": 1}
    problem = build.Problem(**(sizes | {size: 2**61}))
    for function in build.load().functions.values():
        assert function(ctypes.byref(problem)) == 1
