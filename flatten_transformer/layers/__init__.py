"""Modules built from the ops."""

from flatten_transformer.layers.focused_linear_attention import FocusedLinearAttention, FocusedLinearAttentionCore

__all__ = ["FocusedLinearAttention", "FocusedLinearAttentionCore"]
