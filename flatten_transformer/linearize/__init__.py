"""Pretrained softmax Transformers turned linear.

``flatten_transformer.linearize`` is the function; the rest comes by ``from flatten_transformer.linearize import …``.
"""

from flatten_transformer.linearize.convert import linearize
from flatten_transformer.linearize.errors import block_errors
from flatten_transformer.linearize.forms import LinearForm, linear_form_of, softmax_attentions
from flatten_transformer.linearize.mixer import LinearMixer

__all__ = ["LinearForm", "LinearMixer", "block_errors", "linear_form_of", "linearize", "softmax_attentions"]
