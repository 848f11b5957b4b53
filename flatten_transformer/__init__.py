"""Focused linear attention for vision Transformers; importing it registers the ``flatten_*`` models with timm."""

from typing import TYPE_CHECKING

from flatten_transformer.utils import import_path  # first: `python -m` finds libraries before files of the working directory

if TYPE_CHECKING or not import_path.is_finding_command():  # which runs this again for a command that needs it
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
    from flatten_transformer.workflow import Run, evaluate, load_model, train

    __all__ = [
        "FlattenVisionTransformer",
        "FocusedLinearAttention",
        "GridAttention",
        "Run",
        "create_attention",
        "evaluate",
        "focused_linear_attention",
        "list_attentions",
        "load_model",
        "register_attention",
        "train",
    ]
