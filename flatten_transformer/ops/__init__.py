"""Pure functions on tensors: the oracle and the fast forms it judges."""

from flatten_transformer.ops.attention import focused_linear_attention
from flatten_transformer.ops.feature_maps import focused
from flatten_transformer.ops.linear_attention import linear_attention

__all__ = ["focused", "focused_linear_attention", "linear_attention"]
