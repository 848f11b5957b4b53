"""The fused backend for GPUs, written in Triton; importing it does not import Triton. README.md holds the derivation."""

from flatten_transformer.ops.triton.backend import attend, why_not

__all__ = ["attend", "why_not"]
