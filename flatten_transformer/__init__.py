"""Focused linear attention for vision Transformers; importing it registers the ``flatten_*`` models with timm."""

from flatten_transformer.layers import FocusedLinearAttention
from flatten_transformer.models import FlattenVisionTransformer
from flatten_transformer.ops import focused_linear_attention

__version__ = "0.1.0"
__all__ = ["FlattenVisionTransformer", "FocusedLinearAttention", "focused_linear_attention"]
