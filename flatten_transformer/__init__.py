"""Focused linear attention for vision Transformers; importing it registers the ``flatten_*`` models with timm."""

from flatten_transformer.utils import import_path  # noqa: F401  # first: `python -m` finds libraries before files of the working directory

# isort: split
from flatten_transformer.layers import (
    FocusedLinearAttention,
    GridAttention,
    create_attention,
    list_attentions,
    register_attention,
)
from flatten_transformer.models import FlattenVisionTransformer
from flatten_transformer.ops import focused_linear_attention

__version__ = "0.1.0"
__all__ = [
    "FlattenVisionTransformer",
    "FocusedLinearAttention",
    "GridAttention",
    "create_attention",
    "focused_linear_attention",
    "list_attentions",
    "register_attention",
]
