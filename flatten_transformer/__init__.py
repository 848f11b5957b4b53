"""Focused linear attention for vision Transformers; importing it registers the ``flatten_*`` models with timm."""

from flatten_transformer.utils import import_path  # noqa: F401  # first: `python -m` finds libraries before files of the working directory

# isort: split
from flatten_transformer.layers import (
    FocusedLinearAttention,
    GridAttention,
    MultiheadAdapter,
    attention_layer,
    create_attention,
    list_attentions,
    register_attention,
)
from flatten_transformer.linearize import linearize  # hides the package as an attribute; imports from it work
from flatten_transformer.models import FlattenVisionTransformer
from flatten_transformer.ops import focused_linear_attention
from flatten_transformer.version import __version__ as __version__
from flatten_transformer.workflow import Run, evaluate, load_model, train

__all__ = [
    "FlattenVisionTransformer",
    "FocusedLinearAttention",
    "GridAttention",
    "MultiheadAdapter",
    "Run",
    "attention_layer",
    "create_attention",
    "evaluate",
    "focused_linear_attention",
    "linearize",
    "list_attentions",
    "load_model",
    "register_attention",
    "train",
]
