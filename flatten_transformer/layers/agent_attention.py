"""Agent attention as a module: pooled queries for agents, biases of position, a convolution of the values."""

# B batch, N queries, M keys, A agents, C channels = H heads × D channels per head.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatten_transformer.layers.attention import GridAttention
from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.layers.layout import Layout
from flatten_transformer.layers.rank_restoration import Stretch
from flatten_transformer.ops import peers
from flatten_transformer.ops.peers import reference

_BLOCK = 7  # side of the coarse biases, as released


class Lines(nn.ParameterList):
    """What is learned along each axis of a grid, ``[H, length, A]`` each; a list that is called, so that wrappers see it."""

    __call__ = nn.Module.__call__

    def forward(self, grid_size: Sequence[int]) -> list[Tensor]:
        """Return the lines at the lengths of a grid."""
        return [resize_line(line, size) for line, size in zip(self, grid_size, strict=True)]


class PositionBias(nn.Module):
    """The bias between tokens and agents: a coarse block, a line for each axis, and one value for each prefix token.

    Args:
        num_heads: Heads H.
        num_agents: Agents A.
        grid_size: The grid that the lines are learned on.
        num_prefix_tokens: Prefix tokens.
        device: Where the parameters are made.
        dtype: Their dtype.
    """

    def __init__(
        self,
        num_heads: int,
        num_agents: int,
        grid_size: Sequence[int],
        num_prefix_tokens: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()

        def parameter(tokens: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(num_heads, tokens, num_agents, device=device, dtype=dtype))

        self.block = parameter(_BLOCK ** len(grid_size))
        self.lines = Lines(parameter(size) for size in grid_size)
        self.prefix = parameter(num_prefix_tokens) if num_prefix_tokens else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the bias: normal with deviation 0.02."""
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, grid_size: Sequence[int]) -> Tensor:
        """Return the bias on a grid of N tokens, prefix tokens first: ``[H, N, A]``."""
        bias = resize_grid(self.block, (_BLOCK,) * len(grid_size), grid_size, smooth=False)
        bias = bias.unflatten(1, tuple(grid_size))  # [H, *grid, A]
        for axis, along in enumerate(self.lines(grid_size), start=1):
            shape = [1] * bias.ndim
            shape[0], shape[axis], shape[-1] = along.shape
            bias = bias + along.reshape(shape)
        bias = bias.flatten(1, -2)
        return bias if self.prefix is None else torch.cat([self.prefix, bias], dim=1)

    def set_grid_size(self, grid_size: Sequence[int]) -> None:
        """Learn the lines on another grid from here on."""
        for index, size in enumerate(grid_size):
            line = self.lines[index]
            self.lines[index] = nn.Parameter(resize_line(line.detach(), size), requires_grad=line.requires_grad)


def resize_line(line: Tensor, size: int) -> Tensor:
    """Return what is learned along one axis, ``[H, length, A]``, at another length."""
    return resize_grid(line, (line.shape[1],), (size,), smooth=False)


class AgentAttention(GridAttention):
    """Agent attention (arXiv 2312.08874): softmax attention to a few pooled queries, and from them.

    The convolution has a kernel for each channel of all heads. The position biases are those of the paper: a coarse
    block of 7 a side, bilinearly enlarged, and a line for each axis, here resized too, so that any grid may come. Pooling
    leaves prefix tokens and padding out. Released models take 9, 16, 49 and 49 agents in the four stages of a
    pyramid; here one number holds for all.

    Args:
        num_agents: Agents: the power of a whole number, as many times as the grid has axes, 49 = 7².
        position_bias: Learn biases between tokens and agents.
        dim: As every other argument: see :class:`~flatten_transformer.layers.core.AttentionCore`.
        num_heads: Likewise.
        grid_size: Likewise.
        kernel_size: Likewise.
        num_prefix_tokens: Likewise.
        key_encoding: Likewise.
        temperature: Likewise.
        rank_restoration: Likewise.
        stretch: Likewise.
        device: Likewise.
        dtype: Likewise.

    Raises:
        ValueError: If the agents make no square (line, cube).

    Example:
        >>> from flatten_transformer.layers import create_attention
        >>> create_attention("agent", dim=32, num_heads=2, grid_size=(5, 7), num_agents=9)(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        num_agents: int = 49,
        position_bias: bool = True,
        kernel_size: int = 3,
        num_prefix_tokens: int = 0,
        key_encoding: bool = False,
        temperature: bool = False,
        rank_restoration: bool = True,
        stretch: Stretch = "grid",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            grid_size,
            kernel_size=kernel_size,
            num_prefix_tokens=num_prefix_tokens,
            key_encoding=key_encoding,
            temperature=temperature,
            rank_restoration=rank_restoration,
            stretch=stretch,
            device=device,
            dtype=dtype,
        )
        self.agents = _side(num_agents, len(self.grid_size))
        self.query_bias: PositionBias | None = None
        self.key_bias: PositionBias | None = None
        if position_bias:
            sizes = (num_heads, num_agents, self.grid_size, num_prefix_tokens)
            self.query_bias = PositionBias(*sizes, device=device, dtype=dtype)
            self.key_bias = PositionBias(*sizes, device=device, dtype=dtype)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        agents, query_bias, key_bias = self._agents(q, layout)
        return peers.agent_attention(q, k, v, layout.attn_mask, agents=agents, query_bias=query_bias, key_bias=key_bias)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, M]``."""
        agents, query_bias, key_bias = self._agents(q, layout)
        return reference.agent_matrix(q, k, layout.attn_mask, agents=agents, query_bias=query_bias, key_bias=key_bias)

    def set_grid_size(self, grid_size: Sequence[int]) -> None:
        """Learn on another grid from here on: resizes the lines of the biases too."""
        super().set_grid_size(grid_size)
        for bias in (self.query_bias, self.key_bias):
            if bias is not None:
                bias.set_grid_size(self.grid_size)

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Resize the line of a bias, ``[H, length, A]``, that comes from another grid."""
        _, is_line, axis = name.partition(".lines.")
        return resize_line(tensor, self.grid_size[int(axis)]) if is_line else tensor

    def _agents(self, q: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the agents ``[B, H, A, D]``, the biases of queries ``[H, N, A]`` and of keys ``[H, A, M]``."""
        prefix, mask = self.num_prefix_tokens, layout.query_mask
        mask = mask if mask is None else mask[..., prefix:]
        agents = peers.pool_agents(q[:, :, prefix:], layout.grid_size, self.agents, mask)
        if self.query_bias is None or self.key_bias is None:
            return agents, None, None
        return agents, self.query_bias(layout.grid_size), self.key_bias(layout.context_grid_size).transpose(1, 2)

    def _kernel_count(self) -> int:
        """Return how many kernels ``dwc`` has: each channel of each head its own."""
        return self.dim


def _side(num_agents: int, axes: int) -> tuple[int, ...]:
    side = round(num_agents ** (1 / axes)) if num_agents > 0 else 0
    if side < 1 or side**axes != num_agents:
        raise ValueError(f"num_agents must be a whole number to the power {axes}, such as {7**axes}, got {num_agents}")
    return (side,) * axes
