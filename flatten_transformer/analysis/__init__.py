"""Focus and rank of attention, in numbers and pictures."""

from flatten_transformer.analysis.angles import Angles, measure_angles
from flatten_transformer.analysis.capture import CapturedAttention, capture
from flatten_transformer.analysis.metrics import (
    LayerNumbers,
    effective_rank,
    measure,
    numerical_rank,
    row_entropy_bits,
    token_similarity,
    top_mass,
)

__all__ = [
    "Angles",
    "CapturedAttention",
    "LayerNumbers",
    "capture",
    "effective_rank",
    "measure",
    "measure_angles",
    "numerical_rank",
    "row_entropy_bits",
    "token_similarity",
    "top_mass",
]
