"""Attentions over a grid of tokens: base class, registry, and one file a design."""

from flatten_transformer.layers.attention.base import GridAttention
from flatten_transformer.layers.attention.registry import (
    create_attention,
    create_attention_core,
    list_attentions,
    register_attention,
    unregister_attention,
)

# In the order of list_attentions.
# isort: off
from flatten_transformer.layers.attention.focused import FocusedLinearAttention, FocusedLinearAttentionCore, set_backend
from flatten_transformer.layers.attention import elu  # noqa: F401
from flatten_transformer.layers.attention import hydra  # noqa: F401
from flatten_transformer.layers.attention import efficient  # noqa: F401
from flatten_transformer.layers.attention import angular  # noqa: F401
from flatten_transformer.layers.attention import agent  # noqa: F401
from flatten_transformer.layers.attention import inline  # noqa: F401
from flatten_transformer.layers.attention import polaformer  # noqa: F401
from flatten_transformer.layers.attention import softmax  # noqa: F401

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
