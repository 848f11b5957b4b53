"""Attentions over a grid of tokens: their base, their registry, and one file for each design, registered in this order."""

# isort: off
from flatten_transformer.layers.attention import focused  # noqa: F401
from flatten_transformer.layers.attention import elu  # noqa: F401
from flatten_transformer.layers.attention import hydra  # noqa: F401
from flatten_transformer.layers.attention import efficient  # noqa: F401
from flatten_transformer.layers.attention import angular  # noqa: F401
from flatten_transformer.layers.attention import agent  # noqa: F401
from flatten_transformer.layers.attention import inline  # noqa: F401
from flatten_transformer.layers.attention import polaformer  # noqa: F401
from flatten_transformer.layers.attention import softmax  # noqa: F401
