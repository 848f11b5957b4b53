"""The attention of a trained block as a matrix, made on demand; the fast path never forms it."""

# B batch, H heads, N tokens, E value channels per head.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import Attention
from torch import Tensor, nn

from flatten_transformer.layers import FocusedLinearAttention
from flatten_transformer.ops import reference


class AttentionInput(NamedTuple):
    """What a block's attention was given: tokens ``[B, N, C]`` and the attention itself."""

    attention: Any  # FocusedLinearAttention, or timm's
    tokens: Tensor


def attention_input(model: nn.Module, image: Tensor, block: int) -> AttentionInput:
    """Run the model once and return what the attention of one block saw.

    Args:
        model: A model with ``blocks`` whose members have ``attn``: timm's VisionTransformer and FLatten-DeiT.
        image: ``[B, channels, height, width]``.
        block: Index of the block; negative counts from the end.

    Raises:
        ValueError: If there is no such block; the message lists what exists.

    Example:
        >>> import timm
        >>> model = timm.create_model("flatten_deit_tiny_patch16_224", depth=2)
        >>> attention_input(model, torch.rand(1, 3, 224, 224), block=1).tokens.shape
        torch.Size([1, 196, 192])
    """
    blocks = list(getattr(model, "blocks", []))
    if not -len(blocks) <= block < len(blocks):
        raise ValueError(f"{type(model).__name__} has blocks 0 to {len(blocks) - 1}, got block {block}")
    attention = blocks[block].attn
    seen: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    return AttentionInput(attention, seen[0])


def focused_matrix(
    attention: FocusedLinearAttention, tokens: Tensor, grid_size: Sequence[int], *, focusing_factor: float | None = None
) -> Tensor:
    """Return the attention matrix ``φ(Q)φ(K)ᵀ`` of a self-attention layer, rank restoration not included.

    Args:
        attention: The layer.
        tokens: Its input, ``[B, N, C]``.
        grid_size: The grid of the tokens.
        focusing_factor: Another power than the layer's; 1 shows plain ReLU linear attention.

    Returns:
        ``[B, H, N, N]``, float64; row i holds the weights of query i.
    """
    with torch.no_grad():
        query, key, _ = attention.qkv(tokens).chunk(3, dim=2)
        query, key = (_split_heads(x, attention.num_heads).double() for x in (query, key))
        encoding = attention.key_encoding(grid_size)
        if encoding is not None:
            key = key + encoding
        temperature = attention.temperature()
        return reference.attention_matrix(
            query,
            key,
            focusing_factor=attention.focusing_factor if focusing_factor is None else focusing_factor,
            temperature=None if temperature is None else temperature.double(),
            norm=attention.norm,
        )


def convolution_matrix(attention: FocusedLinearAttention, grid_size: Sequence[int]) -> Tensor:
    """Return rank restoration as matrices, one a channel: ``M_DWC`` of FLatten eq. (11), bias left out.

    The heads share the kernels, so these are the matrices of every head.

    Args:
        attention: A layer with rank restoration and without prefix tokens.
        grid_size: The grid of the N tokens.

    Returns:
        ``[E, N, N]``, float64: ``M[e] @ v[:, e] + bias[e]`` is the convolution of channel e.

    Raises:
        ValueError: If the layer has no rank restoration.

    Example:
        >>> layer = FocusedLinearAttention(dim=4, num_heads=2, grid_size=(3, 5))
        >>> convolution_matrix(layer, (3, 5)).shape
        torch.Size([2, 15, 15])
    """
    if attention.dwc is None:
        raise ValueError("this layer was built with rank_restoration=False: it has no convolution matrix")
    count = math.prod(grid_size)
    channels = attention.dwc.weight.shape[0]
    # Channel e's answer to an impulse at token j is column j of M[e].
    impulses = torch.eye(count, dtype=torch.float64).reshape(count, 1, *grid_size).expand(-1, channels, *grid_size)
    convolution = getattr(nn.functional, f"conv{len(grid_size)}d")
    padding = attention.dwc.kernel_size[0] // 2
    with torch.no_grad():
        answers = convolution(impulses, attention.dwc.weight.double(), padding=padding, groups=channels)  # [N, E, *grid]
    return answers.flatten(2).permute(1, 2, 0)


def softmax_matrix(attention: Attention, tokens: Tensor) -> Tensor:
    """Return the attention matrix of timm's softmax attention.

    Args:
        attention: timm's ``Attention``, without query and key norms.
        tokens: Its input, ``[B, N, C]``.

    Returns:
        ``[B, H, N, N]``, float64; rows sum to 1.
    """
    with torch.no_grad():
        query, key, _ = attention.qkv(tokens).chunk(3, dim=2)
        query, key = (_split_heads(x, attention.num_heads).double() for x in (query, key))
        return (query @ key.transpose(2, 3) * attention.scale).softmax(dim=3)


def numerical_rank(matrix: Tensor) -> Tensor:
    """Return the numerical rank of ``[..., N, M]``: singular values above max(N, M) · ε · the largest.

    Example:
        >>> numerical_rank(torch.ones(3, 3))
        tensor(1)
    """
    return torch.linalg.matrix_rank(matrix)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)  # [B, H, N, D]
