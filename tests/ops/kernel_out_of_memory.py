"""A process of its own, whose memory ends within the compiled kernel: an error says so, and the process goes on.

Memory that other tests have freed would be taken again and hide the end, so this is run by itself: ``python -m``.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from flatten_transformer import focused_linear_attention
from tests.helpers import output_and_gradients, relative_error

MIB = 2**20
# Sizes, and what runs out: the sums over keys, which all threads share, 64 MiB; a thread's own tile of features, 48 MiB each.
SHARED, OWN = (64, 1, 1, 512, 512), (1, 1, 1, 400_000, 1)


@contextmanager
def memory_left(mib: int) -> Iterator[None]:
    """Let this process have little more memory than it has now."""
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


def forward(sizes: tuple[int, ...], mib: int) -> None:
    tensors = inputs(*sizes)
    with memory_left(mib), pytest.raises(torch.OutOfMemoryError, match=r"out of memory in the kernel.*forward.*smaller batches"):
        attend(*tensors)


def backward(sizes: tuple[int, ...], mib: int) -> None:
    tensors = [x.requires_grad_() for x in inputs(*sizes)]
    out = attend(*tensors).sum()
    with memory_left(mib), pytest.raises(torch.OutOfMemoryError, match=r"out of memory in the kernel.*backward"):
        out.backward()
    assert all(x.grad is None for x in tensors)


if __name__ == "__main__":
    as_ever()
    for case, sizes, mib in (
        (forward, SHARED, 90),
        (forward, OWN, 90),
        (backward, SHARED, 40),  # contexts
        (backward, SHARED, 200),  # their gradients
        (backward, OWN, 150),
    ):
        case(sizes, mib)
        as_ever()
