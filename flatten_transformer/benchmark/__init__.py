"""Speed, memory and size, side by side with what a user would pick instead."""

from flatten_transformer.benchmark.cost import count_macs, count_parameters

__all__ = ["count_macs", "count_parameters"]
