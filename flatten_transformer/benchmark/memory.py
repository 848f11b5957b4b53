"""Peak memory of a call beyond what was allocated before, outputs included."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

MIB = 2**20


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """Run a call once and return its peak memory, in MiB.

    On a GPU, as reported by PyTorch's allocator. On the CPU, the sum of all allocations and releases of PyTorch's
    allocator, from its profiler: tensors, what autograd saves, scratch memory from PyTorch; memory of other libraries (C++
    vectors, a convolution's buffers) is not seen. Inputs, parameters and all else that existed before do not count.

    Args:
        call: Measured; its result is dropped.
        device: Device it runs on.

    Example:
        >>> round(peak_mib(lambda: torch.ones(512, 1024) + 1, torch.device("cpu")), 3)  # two tensors of 2 MiB
        4.0
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    with (
        _without_profiler_log(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        call()
    allocations = sorted(_allocations(profile))
    held = peak = 0
    for _, size in allocations:
        held += size
        peak = max(peak, held)
    return peak / MIB


def free_mib(device: torch.device) -> float:
    """Return the free memory, in MiB.

    Example:
        >>> free_mib(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / MIB
    try:
        with open("/proc/meminfo") as file:  # counts reclaimable caches, unlike sysconf
            available_kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        return available_kib / 1024
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
    except (AttributeError, OSError, ValueError):
        return 4096.0  # unknown; a guess for any machine that runs PyTorch


def _allocations(profile: Any) -> Iterator[tuple[int, int]]:
    """Yield (nanosecond, bytes) of each allocation; a release has negative bytes."""
    events = list(profile.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.alloc_size


@contextmanager
def _without_profiler_log() -> Iterator[None]:
    """Keep the profiler's C++ log off stderr; it reads this variable at start."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = before or "99"
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]
