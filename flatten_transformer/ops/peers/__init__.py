"""The attentions that focused linear attention is compared with, one pure function each; reference.py judges them."""

from flatten_transformer.ops.peers.agent import agent_attention, pool_agents
from flatten_transformer.ops.peers.angular import angular_attention
from flatten_transformer.ops.peers.efficient import efficient_attention
from flatten_transformer.ops.peers.elu import elu_attention
from flatten_transformer.ops.peers.hydra import hydra_attention
from flatten_transformer.ops.peers.inline import inline_attention
from flatten_transformer.ops.peers.polaformer import polaformer_attention
from flatten_transformer.ops.peers.softmax import softmax_attention

__all__ = [
    "agent_attention",
    "angular_attention",
    "efficient_attention",
    "elu_attention",
    "hydra_attention",
    "inline_attention",
    "polaformer_attention",
    "pool_agents",
    "softmax_attention",
]
