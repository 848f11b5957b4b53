"""Agent attention: Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", ECCV 2024."""

# B batch, N queries, M keys, A agents, C channels = H heads × D channels per head.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from flatten_transformer.layers.attention.base import GridAttention, GridOptions
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.attention.registry import register_attention
from flatten_transformer.layers.attention.rows import masked_softmax, softmax_rows
from flatten_transformer.layers.grid import resize_grid

_POOL: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_BLOCK = 7  # side of the coarse biases, as released


class Lines(nn.ParameterList):
    """One bias along each axis of a grid, ``[H, length, A]`` each; a list that is called, so that wrappers see it."""

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
        device: Device of the parameters.
        dtype: Dtype of the parameters.
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
        """Initialise the biases: truncated normal, deviation 0.02."""
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
        """Change the grid that the lines are learned on."""
        for index, size in enumerate(grid_size):
            line = self.lines[index]
            self.lines[index] = nn.Parameter(resize_line(line.detach(), size), requires_grad=line.requires_grad)


def resize_line(line: Tensor, size: int) -> Tensor:
    """Return the bias along one axis, ``[H, length, A]``, at another length."""
    return resize_grid(line, (line.shape[1],), (size,), smooth=False)


@register_attention("agent")
class AgentAttention(GridAttention):
    """Attention through a few agents, in O(A(N + M)): ``softmax(s Q Aᵀ + B₂) softmax(s A Kᵀ + B₁) V``, s = 1/√D.

    ArXiv 2312.08874: pooled queries are the agents: they gather from the keys by softmax attention, and the queries from
    them. The convolution has a kernel for each channel of all heads. The position biases B are those of the paper: a
    coarse block of 7 a side, bilinearly enlarged, and a line for each axis, here resized too, so that any grid may come.
    Pooling leaves prefix tokens and padding out. Released models take 9, 16, 49 and 49 agents in the four stages of a
    pyramid; here one number holds for all.

    Args:
        num_agents: Agents A: the power of a whole number, as many times as the grid has axes, 49 = 7².
        position_bias: Learn biases between tokens and agents.
        dim, num_heads, grid_size, options: as :class:`GridAttention`.

    Raises:
        ValueError: If the agents make no square (line, cube).

    Example:
        >>> AgentAttention(dim=32, num_heads=2, grid_size=(5, 7), num_agents=9)(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
    """

    defaults: ClassVar[GridOptions] = {"kernel_size": 3, "rank_restoration": True}
    own_modules = ("query_bias", "key_bias")
    query_bias: PositionBias | None
    key_bias: PositionBias | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        *,
        num_agents: int = 49,
        position_bias: bool = True,
        **options: Unpack[GridOptions],
    ) -> None:
        super().__init__(dim, num_heads, grid_size, **options)
        self.agents = _side(num_agents, len(self.grid_size))
        if position_bias:
            sizes = (num_heads, num_agents, self.grid_size, self.num_prefix_tokens)
            device, dtype = options.get("device"), options.get("dtype")
            self.query_bias = PositionBias(*sizes, device=device, dtype=dtype)
            self.key_bias = PositionBias(*sizes, device=device, dtype=dtype)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return ``[B, H, N, D]``."""
        agents = self._agents(q, layout) * (q.shape[3] or 1) ** -0.5
        spread, gather = self._add_biases(q @ agents.transpose(2, 3), agents @ k.transpose(2, 3), layout)
        return spread.softmax(dim=3) @ (masked_softmax(gather, layout.attn_mask, dim=3) @ v)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Return softmax(QAᵀ/√D + B₂) softmax(AKᵀ/√D + B₁), ``[B, H, N, M]``."""
        agents, root = self._agents(q, layout), q.shape[3] ** 0.5
        spread, gather = self._add_biases(q @ agents.transpose(2, 3) / root, agents @ k.transpose(2, 3) / root, layout)
        return softmax_rows(spread, None) @ softmax_rows(gather, layout.attn_mask)

    def set_grid_size(self, grid_size: Sequence[int]) -> None:
        """Change the learned grid: resizes the lines of the biases too."""
        super().set_grid_size(grid_size)
        for bias in (self.query_bias, self.key_bias):
            if bias is not None:
                bias.set_grid_size(self.grid_size)

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Resize the line of a bias, ``[H, length, A]``, from another grid."""
        _, is_line, axis = name.partition(".lines.")
        return resize_line(tensor, self.grid_size[int(axis)]) if is_line else tensor

    def _agents(self, q: Tensor, layout: Layout) -> Tensor:
        """Return the agents, ``[B, H, A, D]``, of queries ``[B, H, N, D]``."""
        prefix, mask = self.num_prefix_tokens, layout.query_mask
        return pool_agents(q[:, :, prefix:], layout.grid_size, self.agents, None if mask is None else mask[..., prefix:])

    def _add_biases(self, spread: Tensor, gather: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Add B₂ to ``[B, H, N, A]`` and B₁ to ``[B, H, A, M]``."""
        if self.query_bias is None or self.key_bias is None:
            return spread, gather
        return spread + self.query_bias(layout.grid_size), gather + self.key_bias(layout.context_grid_size).transpose(1, 2)

    def _kernel_count(self) -> int:
        """Return how many kernels ``dwc`` has: each channel of each head its own."""
        return self.dim


def _side(num_agents: int, axes: int) -> tuple[int, ...]:
    side = round(num_agents ** (1 / axes)) if num_agents > 0 else 0
    if side < 1 or side**axes != num_agents:
        raise ValueError(f"num_agents must be a whole number to the power {axes}, such as {7**axes}, got {num_agents}")
    return (side,) * axes


def pool_agents(query: Tensor, grid_size: Sequence[int], agents: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Average the queries of a grid into a smaller grid of agents, whatever the grid: bins may overlap.

    Args:
        query: ``[B, H, N, D]``, grid tokens only, last axis fastest.
        grid_size: One to three axes; their product is N.
        agents: As many axes, of A agents.
        mask: Boolean, ``[B, 1, 1, N]``; False where a query is padding. An agent of padding alone is 0.

    Returns:
        ``[B, H, A, D]`` in ``query.dtype``.

    Example:
        >>> pool_agents(torch.arange(6.0).reshape(1, 1, 6, 1), (6,), (2,)).flatten()
        tensor([1., 4.])
    """
    batch, heads, _, channels = query.shape

    def pool(x: Tensor) -> Tensor:  # [B, N, C] -> [B, A, C]
        image = x.transpose(1, 2).reshape(batch, x.shape[2], *grid_size)
        return _POOL[len(grid_size)](image, tuple(agents)).flatten(2).transpose(1, 2)

    if mask is None:
        pooled = pool(query.transpose(1, 2).flatten(2))
    else:
        kept = mask.transpose(2, 3).expand(batch, 1, -1, 1)  # [B, 1, N, 1]
        sums = pool(query.masked_fill(~kept, 0).transpose(1, 2).flatten(2))
        shares = pool(kept[:, 0].to(query.dtype))  # [B, A, 1]
        pooled = sums / shares.where(shares > 0, 1)
    return pooled.unflatten(2, (heads, channels)).transpose(1, 2)
