"""Time each kernel of one attention, forward and backward, in bfloat16, on this machine's GPU: ``python benchmarks/kernels.py``.

Needs torch and triton, and this repository. The caches are emptied before each call; prints the mean of several, and the time
it takes to copy what a kernel has to read and write.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flatten_transformer.benchmark.contenders import Contender, Shape, make_run, ours
from flatten_transformer.benchmark.machine import copy_gb_per_s
from flatten_transformer.benchmark.op import draw_task
from flatten_transformer.benchmark.race import TRAINING, Case

# Tensors of B·N·C numbers that a kernel cannot but read or write.
TENSORS = {
    "norms_kernel": 2,
    "keys_forward_kernel": 2,
    "queries_forward_kernel": 3,
    "context_backward_kernel": 2,
    "queries_backward_kernel": 3,
    "values_backward_kernel": 4,
    "keys_backward_kernel": 3,
    "convolution_backward_kernel": 2,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=5, default=(16, 64, 64, 256, 4), help="batch, height, width, channels, heads")
    parser.add_argument("--calls", type=int, default=20)
    arguments = parser.parse_args()
    device, shape = torch.device("cuda"), Shape(*arguments.shape)
    copied_us = shape.elements() * torch.bfloat16.itemsize / copy_gb_per_s(device) / 1e3
    run = make_run(Contender("ours", ours), draw_task(Case(shape, torch.bfloat16, TRAINING), device))
    for turn in range(3):
        run.step(turn)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for turn in range(arguments.calls):
            run.step(turn)
        torch.cuda.synchronize()
    times_us: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        times_us[event.key if event.key in TENSORS else "others"] += event.self_device_time_total / arguments.calls
    for name in (*TENSORS, "others"):
        floor = f"{TENSORS[name] * copied_us / times_us[name]:6.0%} of the floor" if name in TENSORS else ""
        print(f"{name:28} {times_us[name]:8.1f} µs {floor}")
    print(f"{'together':28} {sum(times_us.values()):8.1f} µs")


if __name__ == "__main__":
    main()
