"""Modules built from the ops."""

from flatten_transformer.layers.focused_linear_attention import FocusedLinearAttention, FocusedLinearAttentionCore, set_backend

__all__ = ["FocusedLinearAttention", "FocusedLinearAttentionCore", "set_backend"]
