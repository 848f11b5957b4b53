"""Focus and rank of attention, as numbers and as pictures."""

from flatten_transformer.analysis.angles import Angles, measure_angles
from flatten_transformer.analysis.capture import capture
from flatten_transformer.analysis.looks import Look
from flatten_transformer.analysis.measures import (
    effective_rank,
    numerical_rank,
    row_entropy_bits,
    token_similarity,
    top_mass,
)
from flatten_transformer.analysis.summary import LayerNumbers, measure

__all__ = [
    "Angles",
    "LayerNumbers",
    "Look",
    "capture",
    "effective_rank",
    "measure",
    "measure_angles",
    "numerical_rank",
    "row_entropy_bits",
    "token_similarity",
    "top_mass",
]
