"""Focus and rank of attention, as numbers and as pictures."""

from flatten_transformer.analysis.matrices import (
    attention_input,
    convolution_matrix,
    focused_matrix,
    numerical_rank,
    softmax_matrix,
)

__all__ = ["attention_input", "convolution_matrix", "focused_matrix", "numerical_rank", "softmax_matrix"]
