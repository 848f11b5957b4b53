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
from flatten_transformer.version import __version__ as __version__

__all__ = [
    "FlattenVisionTransformer",
    "FocusedLinearAttention",
    "GridAttention",
    "create_attention",
    "focused_linear_attention",
    "list_attentions",
    "register_attention",
]
