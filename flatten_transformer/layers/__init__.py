"""Modules built from the ops."""

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.focused import FocusedLinearAttention, FocusedLinearAttentionCore, set_backend
from flatten_transformer.layers.attention.registry import (
    create_attention,
    create_attention_core,
    list_attentions,
    register_attention,
    unregister_attention,
)
from flatten_transformer.layers.attention_layer import attention_layer
from flatten_transformer.layers.multihead import MultiheadAdapter

__all__ = [
    "FocusedLinearAttention",
    "FocusedLinearAttentionCore",
    "GridAttention",
    "MultiheadAdapter",
    "attention_layer",
    "create_attention",
    "create_attention_core",
    "list_attentions",
    "register_attention",
    "set_backend",
    "unregister_attention",
]
