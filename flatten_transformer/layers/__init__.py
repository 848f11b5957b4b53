"""Modules built from the ops."""

from flatten_transformer.layers.attention import (
    FocusedLinearAttention,
    FocusedLinearAttentionCore,
    GridAttention,
    create_attention,
    create_attention_core,
    list_attentions,
    register_attention,
    set_backend,
    unregister_attention,
)

__all__ = [
    "FocusedLinearAttention",
    "FocusedLinearAttentionCore",
    "GridAttention",
    "create_attention",
    "create_attention_core",
    "list_attentions",
    "register_attention",
    "set_backend",
    "unregister_attention",
]
